"""From GGUF blocks to whole numbers in groups, with a scale and perhaps an offset each.

A weight is ``scale * (number + offset)``.  The whole numbers of a type are kept, moved to fit
(:class:`Packing`), and its scale is rounded once, to the dtype of the layout: but for that it is
exact.  Where a group spans two scales of the type, it gets a new one (:meth:`Groups._nearest`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from llvmlite import ir

from ascend_gguf.codegen.compile import compiled, host_machine
from ascend_gguf.codegen.control import loop
from ascend_gguf.codegen.vectors import (
    I8,
    I64,
    STORED,
    Bytes,
    Vector,
    gathered,
    restored,
    store,
    stored,
)
from ascend_gguf.decoders.dequantize import WEIGHTS_PER_PIECE
from ascend_gguf.decoders.rows import decoder_of
from ascend_gguf.decoders.sink import Scaled, Target
from ascend_gguf.ggml_types import BlockType, Numbers
from ascend_gguf.reader.chunked_read import read_rows
from ascend_gguf.weights.block_tensor import BlockTensor

#: Weights with one scale in the Ascend operators: the fewest they take.
GROUP = 32

#: What decoders hand over at once.
_HALF = 16

# What is read from a file at once.
_BYTES_AT_ONCE = 1 << 22

#: The greatest number where a group gets a new scale.
_GREATEST = 127


_Offset = TypeVar("_Offset", Vector, float)


def _numbers_of(kind: BlockType) -> Numbers:
    """The whole numbers of a type that a packing can keep."""
    if kind.numbers is None:
        raise TypeError(f"{kind.name} is plain numbers")
    return kind.numbers


@dataclass(frozen=True, slots=True)
class Packing:
    """How numbers are kept.

    Attributes:
        bits: for a weight: 4, two numbers to a byte, the first in the low half; or 8.
        low, high: the least and the greatest number that is kept.
        group: weights with one scale.
        planes: a number of 8 bits is kept as two of 4, ``16 high + low``, low from -8 to 7: those
            of 16 weights together, high ones first.  The scale is for the high ones, and the
            operator is given a sixteenth of the input for the low ones.
        nearly: whether a group may span two scales of a type, see :meth:`Groups._nearest`.
        apart: numbers are left a byte each, planes not taken apart, to be packed in another order.
    """

    bits: int
    low: int
    high: int
    group: int = GROUP
    planes: bool = False
    nearly: bool = False
    apart: bool = False

    def fits(self, numbers: Numbers) -> bool:
        """Whether there are enough bits for the numbers of a type."""
        return (numbers.high - numbers.low) // self._step(numbers) <= self.high - self.low

    def _step(self, numbers: Numbers) -> int:
        return numbers.step if self.bits == 4 else 1

    def place(self, numbers: Numbers) -> tuple[int, int]:
        """``(first, step)``: a number that fits is kept as ``(number - first) / step``."""
        low, high, step = numbers.low, numbers.high, self._step(numbers)
        if step == 1 and self.low <= low and high <= self.high:
            # Offsets near 0 round least.
            return ((low + high + 1) // 2 if numbers.has_offset else 0), step
        return low - step * self.low, step

    def unsupported_reason(self, kind: BlockType) -> str | None:
        """Why a type cannot be kept so, as a clause; None if it can."""
        numbers = kind.numbers
        if numbers is None:
            return "a part is plain numbers"
        if not self.fits(numbers):
            return f"{kind.name} does not fit {self.bits} bits"
        if numbers.group < self.group and (numbers.has_offset or not self.nearly):
            return f"{kind.name} has a scale for {numbers.group} weights"
        return None

    def constant_offset(self, kind: BlockType) -> float | None:
        """The offset of every group of a type kept so; None if they differ."""
        numbers = _numbers_of(kind)
        if numbers.has_offset:
            return None
        first, step = self.place(numbers)
        return self.offset(first / step)

    def offset(self, number: _Offset) -> _Offset:
        """What the operator is given for a number to add."""
        # Where low numbers meet a sixteenth of the input, an offset counts 17 sixteenths.
        return number / 17.0 if self.planes else number

    @property
    def stored_bits(self) -> int:
        """Bits of a number as it is written."""
        return 8 if self.apart else self.bits


def conversions(
    matrix: BlockTensor,
    packing: Packing,
    numbers: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
) -> Iterator[Callable[[], None]]:
    """Convert a matrix, in tasks of a thread each.

    Args:
        matrix: ``[rows, cols]``, its columns cut on multiples of 32.
        numbers: uint8 ``[rows, cols * stored_bits / 8]`` on the host, what to fill.
        scale: float16, bfloat16 or float32 ``[rows, cols / group]``.
        offset: as ``scale``; may be None if the type does not need it.
    """
    rows, cols = matrix.shape
    step = max(1, WEIGHTS_PER_PIECE // cols)
    for row in range(0, rows, step):
        part = slice(row, row + step)
        targets = (numbers[part], scale[part], None if offset is None else offset[part])
        yield functools.partial(convert, matrix.rows(row, row + step), packing, *targets)


def convert(
    matrix: BlockTensor,
    packing: Packing,
    numbers: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
) -> None:
    """As :func:`conversions`, at once and in this thread."""
    kind = matrix.block_type
    start, stop = matrix.columns
    size = kind.block_size
    first, last = start // size, -(-stop // size)
    blocks = matrix.blocks[:, first * kind.type_size : last * kind.type_size]
    targets = [numbers, scale, *([] if offset is None else [offset])]
    places = targets
    if (first * size, last * size) != (start, stop):
        # A cut inside a block: convert the blocks, then cut.
        per_element = [8 // packing.stored_bits, packing.group, packing.group]
        cover = (last - first) * size
        places = [
            t.new_empty(len(t), cover // n) for t, n in zip(targets, per_element, strict=False)
        ]
    run = kernel(kind, packing, scale.dtype, offset is not None)
    for rows, read in read_rows(blocks, max(1, _BYTES_AT_ONCE // max(1, blocks.stride(0)))):
        source = np.asarray(read)
        addresses = [value for t in places for value in (t[rows].data_ptr(), t.stride(0))]
        run(source.ctypes.data, source.strides[0], *addresses, len(source), last - first)
    if matrix.factor != 1:
        _multiply(places[1:], kind, matrix.factor)
    if places is not targets:
        for target, place, n in zip(targets, places, per_element, strict=False):
            cut = start - first * size
            target.copy_(place[:, cut // n : cut // n + target.shape[1]])


def _multiply(groups: list[torch.Tensor], kind: BlockType, factor: float) -> None:
    """Multiply scales, and move offsets so that rounding the product does not move the weights."""
    scale, *offsets = groups
    exact = scale.float() * factor
    scale.copy_(exact)
    if offsets and _numbers_of(kind).has_offset:
        ratio = torch.where(scale == 0, 1.0, exact / scale.float())
        offsets[0].copy_(offsets[0].float() * ratio)


@functools.cache
def kernel(
    kind: BlockType, packing: Packing, dtype: torch.dtype, has_offset: bool
) -> Callable[..., None]:
    """Converts rows of blocks; compiled on first use.

    Arguments: address and bytes from row to row of the blocks; address and elements from row to
    row of the numbers, the scales and, if there are any, the offsets; rows; blocks in each.
    """
    write = decoder_of(kind)
    module = ir.Module()
    outputs = [I8, STORED[dtype], *([STORED[dtype]] if has_offset else [])]
    types = [t for element in [I8, *outputs] for t in (element.as_pointer(), I64)]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [*types, I64, I64]), "convert")
    *ends, rows, blocks = function.args
    pointers, strides = ends[::2], ends[1::2]
    sizes = [kind.type_size, kind.block_size * packing.stored_bits // 8]
    sizes += [kind.block_size // packing.group] * (len(outputs) - 1)
    builder = ir.IRBuilder(function.append_basic_block())
    with loop(builder, I64(0), rows, 1) as row:
        starts = [
            builder.gep(pointer, [builder.mul(row, stride)])
            for pointer, stride in zip(pointers, strides, strict=True)
        ]
        with loop(builder, I64(0), blocks, 1) as block:
            source, *targets = (
                builder.gep(start, [builder.mul(block, I64(size))])
                for start, size in zip(starts, sizes, strict=True)
            )
            groups = Groups(builder, kind, packing, dtype, targets)
            write(Bytes(builder, source), groups)
            groups.finish()
    builder.ret_void()
    return compiled(module, host_machine())


class Groups(Target):
    """Gathers a whole block, so that scales and offsets are computed for all of its groups at once.

    Decoders of whole numbers hand over 16 weights at a time.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        kind: BlockType,
        packing: Packing,
        dtype: torch.dtype,
        targets: list[ir.Value],
    ) -> None:
        self._builder = builder
        self._codes = _numbers_of(kind)
        self._packing = packing
        self._dtype = dtype
        self._numbers, self._scale, self._offset = (*targets, None)[:3]
        self._taken: dict[int, Scaled] = {}
        self._usual = True

    def take(self, offset: int, weights: Scaled) -> None:
        numbers, plus = weights.numbers, weights.plus
        if weights.negative is not None:
            numbers = numbers.negated_where(weights.negative)
        if weights.minus is not None:
            plus = weights.minus * -1.0
        self._taken[offset // _HALF] = replace(weights, numbers=numbers, plus=plus)
        self._usual &= weights.usual

    def put(self, offset: int, value: Vector, usual: bool = True) -> None:
        raise TypeError("plain numbers have no groups")

    def finish(self) -> None:
        """Write the block."""
        halves = [self._taken[half] for half in range(len(self._taken))]
        if self._codes.group < self._packing.group:
            self._nearest(halves)
        else:
            self._exact(halves)

    def _round(self, value: Vector) -> tuple[Vector, Vector]:
        """In the layout's dtype, and that in float32."""
        bits = stored(value, self._dtype, self._usual)
        return bits, restored(bits, self._dtype)

    def _put(self, half: int, numbers: Vector) -> None:
        """Write 16 numbers as they are kept, of 8 bits each."""
        place = half * _HALF * self._packing.stored_bits // 8
        if self._packing.apart:
            pass
        elif self._packing.planes:
            numbers = ((numbers + 8) >> 4).nibbles().then(numbers.nibbles())
        elif self._packing.bits == 4:
            numbers = numbers.nibbles()
        store(self._builder, self._numbers, place, numbers)

    def _put_offsets(self, offsets: Vector) -> None:
        if self._offset is not None:
            bits = stored(self._packing.offset(offsets), self._dtype, usual=False)
            store(self._builder, self._offset, 0, bits)

    def _put_scales(self, scales: Vector) -> None:
        scales = scales * 16.0 if self._packing.planes else scales
        store(self._builder, self._scale, 0, self._round(scales)[0])

    def _exact(self, halves: list[Scaled]) -> None:
        first, step = self._packing.place(self._codes)
        together = self._packing.group // _HALF  # halves in a group
        heads = halves[::together]
        scales = gathered([head.scale for head in heads])
        _, rounded = self._round(scales * float(step) if step > 1 else scales)
        is_good: list[Vector] | None = None
        one = 16 if self._packing.planes else 1  # what is kept of weights that are all one number
        offsets = [head.plus for head in heads if head.plus is not None]
        shifts = [head.shift for head in heads if head.shift is not None]
        if offsets:
            # Divided by the rounded scale: so rounding it does not move the middle of the weights.
            plus = gathered(offsets)
            above = plus + scales * float(first)
            # Without a scale, or with one so small that the offset leaves the range or the
            # precision of the dtype, all weights of the group are one number.
            limit = 2.0**15 if self._dtype == torch.float16 else 2.0**22
            good = above.absolute().is_less_than(rounded.absolute() * limit)
            middle = plus + scales * ((self._codes.low + self._codes.high) / 2)
            middle = middle * (1 / one)
            self._put_offsets(good.chosen(above / rounded, above.filled(0.0)))
            rounded = good.chosen(rounded, middle)
            is_good = good.each()
        elif shifts:
            self._put_offsets(gathered(shifts) + first / step)
        else:
            self._put_offsets(scales.filled(first / step))
        self._put_scales(rounded)
        for i, half in enumerate(halves):
            kept = half.numbers - first if first else half.numbers
            kept = kept.halved() if step == 2 else kept
            if is_good is not None:
                kept = is_good[i // together].repeated(len(kept)).chosen(kept, kept.filled(one))
            self._put(i, kept)

    def _nearest(self, halves: list[Scaled]) -> None:
        """Groups of two halves with a scale each: the nearest numbers under a new one.

        If there is a scale under which one of the halves stays exact and which is not much larger
        than the smallest possible, which makes the largest weight 127, then that.
        """
        lasts, scales = [], []
        for half in halves:
            largest = half.numbers.floats(signed=True).absolute().largest()
            lasts.append(half.scale.absolute() * largest)
            scales.append(half.scale.absolute())
        first, second = (gathered(lasts[side::2]) for side in range(2))
        smallest = first.is_less_than(second).chosen(second, first) * (1 / _GREATEST)
        best = smallest.filled(1.0)
        best = best + best  # anything above the square root of 2
        for side in range(2):
            # The half's own scale by a whole number: as large a one as leaves no number past 127.
            ratio = gathered(scales[side::2]) / smallest
            parts = ratio.truncated()
            larger = ratio / parts
            usable = smallest.filled(0.5).is_less_than(parts)
            better = larger.is_less_than(best)
            best = usable.chosen(better.chosen(larger, best), best)
        # Half of the weights exact, the others' error grows with the scale.
        good = best.is_less_than(best.filled(2.0**0.5))
        new = smallest * good.chosen(best, best.filled(1.0))
        is_zero = smallest.filled(0.0).is_less_than(smallest)
        factors = is_zero.chosen(smallest.filled(1.0) / new, smallest.filled(0.0)).each()
        self._put_scales(is_zero.chosen(new, smallest))
        self._put_offsets(smallest.filled(0.0))
        for i, half in enumerate(halves):
            factor = half.scale * factors[i // 2]
            kept = (half.numbers.floats(signed=True) * factor).nearest(-_GREATEST, _GREATEST)
            self._put(i, kept)
