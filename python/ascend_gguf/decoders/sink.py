"""What a decoder hands its block's weights to: the protocol, and the sink that stores them."""

from __future__ import annotations

import abc
from dataclasses import dataclass

from ascend_gguf.codegen import BF16, LANES, Value, lookup_words, processor, rounded, store


@dataclass(frozen=True, slots=True)
class Scaled:
    """Sixteen weights, or thirty-two, as :meth:`Sink.scaled` describes them."""

    codes: Value
    scale: Value
    plus: Value | None
    minus: Value | None
    shift: Value | None
    negative: Value | None
    normal: bool


class Sink(abc.ABC):
    """Takes the weights of a block.

    Attributes:
        count: for a type whose blocks are single weights, how many to decode at once.
    """

    count = 1

    def scaled(
        self,
        offset: int,
        codes: Value,
        scale: Value,
        *,
        plus: Value | None = None,
        minus: Value | None = None,
        shift: Value | None = None,
        negative: Value | None = None,
        normal: bool = True,
    ) -> None:
        """Codes, whole numbers from -128 to 127, and their scale, at weight ``offset``.

        Weights are ``scale (codes + shift)``, negative where the whole number ``negative`` has a
        bit set, ``+ plus - minus``.  16 weights at a time, or 32: what they are has one scale.
        ``normal`` as of :meth:`put`.
        """
        self.take(offset, Scaled(codes, scale, plus, minus, shift, negative, normal))

    @abc.abstractmethod
    def take(self, offset: int, weights: Scaled) -> None:
        """What :meth:`scaled` was given."""

    @abc.abstractmethod
    def put(self, offset: int, value: Value, normal: bool = True) -> None:
        """Weight ``offset`` and those after it, as float32.

        ``normal`` as of :func:`~ascend_gguf.codegen.rounded`: so are products of a few bits and a
        scale that :meth:`.block.Block.half` read.
        """


class StoreSink(Sink):
    """Stores weights at an address, rounded to what it is of."""

    def __init__(self, address: Value, count: int) -> None:
        self._address = address
        self.count = count

    def take(self, offset: int, weights: Scaled) -> None:
        def floats(codes: Value) -> Value:
            value = codes if weights.shift is None else codes + weights.shift
            value = value * weights.scale
            if weights.negative is not None:
                value = value.negate_where(weights.negative)
            value = value if weights.plus is None else value + weights.plus
            return value if weights.minus is None else value - weights.minus

        codes, normal = weights.codes, weights.normal
        book = codes.codebook if weights.negative is None else None
        is_bfloat = self._address.kind.element is BF16 and processor.BFLOAT_INSTRUCTIONS
        if is_bfloat and book and len(book.values) <= 2 * LANES:
            # The few weights there can be, then which of them it is.
            words = lookup_words(book, lambda v: rounded(floats(v), BF16, normal), LANES)
            store(self._address + offset, words)
            return
        self.put(offset, floats(codes.to_float(signed=True)), normal)

    def put(self, offset: int, value: Value, normal: bool = True) -> None:
        store(self._address + offset, value, normal=normal)
