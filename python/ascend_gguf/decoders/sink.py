"""What a decoder hands its block's weights to: the protocol, and the target that stores them."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import torch
from llvmlite import ir

from ascend_gguf.codegen.vectors import (
    BFLOAT_INSTRUCTIONS,
    LANES,
    Vector,
    looked_up_words,
    store,
    stored,
)


@dataclass(frozen=True, slots=True)
class Scaled:
    """Sixteen weights, or thirty-two, as :meth:`Target.scaled` describes them."""

    numbers: Vector
    scale: Vector
    plus: Vector | None
    minus: Vector | None
    shift: Vector | None
    negative: Vector | None
    usual: bool


class Target(abc.ABC):
    """Takes the weights of a block.

    Attributes:
        count: for a type whose blocks are single numbers, how many to decode at once.
    """

    count = 1

    def scaled(
        self,
        offset: int,
        numbers: Vector,
        scale: Vector,
        *,
        plus: Vector | None = None,
        minus: Vector | None = None,
        shift: Vector | None = None,
        negative: Vector | None = None,
        usual: bool = True,
    ) -> None:
        """Whole numbers from -128 to 127 and what they are multiplied with, at weight ``offset``.

        ``scale (numbers + shift)``, negative where the whole number ``negative`` has a bit set,
        ``+ plus - minus``.  16 weights at a time, or 32: what they are has one scale.
        ``usual`` as of :meth:`put`.
        """
        self.take(offset, Scaled(numbers, scale, plus, minus, shift, negative, usual))

    @abc.abstractmethod
    def take(self, offset: int, weights: Scaled) -> None:
        """What :meth:`scaled` was given."""

    @abc.abstractmethod
    def put(self, offset: int, value: Vector, usual: bool = True) -> None:
        """Weight ``offset`` and those after it, as float32.

        ``usual`` says that they come of a scale that :meth:`.vectors.Bytes.half` read and a few
        bits: never subnormal, and if NaN then the usual one.  The instruction that rounds to
        bfloat16 takes subnormals for 0, and without it rounding would turn a NaN with all bits set
        into 0.
        """


class Weights(Target):
    """Stores weights, rounded to a dtype to nearest even."""

    def __init__(
        self, builder: ir.IRBuilder, pointer: ir.Value, dtype: torch.dtype, count: int
    ) -> None:
        self._builder = builder
        self._pointer = pointer
        self._dtype = dtype
        self.count = count

    def take(self, offset: int, weights: Scaled) -> None:
        def floats(numbers: Vector) -> Vector:
            value = numbers if weights.shift is None else numbers + weights.shift
            value = value * weights.scale
            if weights.negative is not None:
                value = value.negated_where(weights.negative)
            value = value if weights.plus is None else value + weights.plus
            return value if weights.minus is None else value - weights.minus

        numbers, usual = weights.numbers, weights.usual
        coded = numbers.coded if BFLOAT_INSTRUCTIONS and weights.negative is None else None
        if self._dtype == torch.bfloat16 and coded and len(coded.numbers) <= 2 * LANES:
            # The few weights there can be, then which of them it is.
            tables = [stored(floats(t), self._dtype, usual) for t in coded.tables(LANES)]
            store(self._builder, self._pointer, offset, looked_up_words(coded.codes(), tables))
            return
        self.put(offset, floats(numbers.floats(signed=True)), usual)

    def put(self, offset: int, value: Vector, usual: bool = True) -> None:
        store(self._builder, self._pointer, offset, stored(value, self._dtype, usual))
