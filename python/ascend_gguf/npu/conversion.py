"""From GGUF blocks to codes in groups: the kernels that convert weights for an NPU.

Where a group spans two scales of the type, it gets a new one (:meth:`GroupSink._nearest`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import torch

from ascend_gguf.codegen import (
    F16,
    F32,
    I8,
    I16,
    I32,
    I64,
    Kernel,
    Rows,
    Value,
    collect,
    loop,
    maximum,
    rounded,
    rows,
    store,
    widened,
)
from ascend_gguf.codegen.math import WHOLE
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.rows import decoder_of
from ascend_gguf.decoders.sink import Scaled, Sink
from ascend_gguf.ggml_types import BlockType
from ascend_gguf.npu.groups import Packing, codes_of
from ascend_gguf.reader.chunked_read import read_rows
from ascend_gguf.thread_pool import WEIGHTS_PER_PIECE
from ascend_gguf.weights.block_tensor import BlockTensor

# What decoders hand over at once.
_HALF = 16

# The greatest code where a group gets a new scale.
_GREATEST = 127


def conversions(
    matrix: BlockTensor,
    packing: Packing,
    codes: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
) -> Iterator[Callable[[], None]]:
    """Convert a matrix, in tasks of a thread each.

    Args:
        matrix: ``[rows, cols]``, its columns cut on multiples of 32.
        codes: uint8 ``[rows, cols * stored_bits / 8]`` on the host, what to fill.
        scale: float16, bfloat16 or float32 ``[rows, cols / group]``.
        offset: as ``scale``; may be None if the type does not need it.
    """
    rows, cols = matrix.shape
    step = max(1, WEIGHTS_PER_PIECE // cols)
    for row in range(0, rows, step):
        part = slice(row, row + step)
        targets = (codes[part], scale[part], None if offset is None else offset[part])
        yield functools.partial(convert, matrix.rows(row, row + step), packing, *targets)


def convert(
    matrix: BlockTensor,
    packing: Packing,
    codes: torch.Tensor,
    scale: torch.Tensor,
    offset: torch.Tensor | None,
) -> None:
    """As :func:`conversions`, at once and in this thread."""
    kind = matrix.block_type
    blocks, skip = matrix.covering()
    cover = kind.row_cols(blocks.shape[1])
    targets = [codes, scale, *([] if offset is None else [offset])]
    places = targets
    if cover != matrix.shape[1]:
        # A cut inside a block: convert the blocks, then cut.
        per_element = [8 // packing.stored_bits, packing.group, packing.group]
        places = [
            t.new_empty(len(t), cover // n) for t, n in zip(targets, per_element, strict=False)
        ]
    run = kernel(kind, packing, scale.dtype, offset is not None)
    for some, read in read_rows(blocks):
        source = np.asarray(read)
        x, found = (source.ctypes.data, source.strides[0]), [t[some] for t in places]
        run(x, *found, len(source), cover // kind.block_size)
    if matrix.factor != 1:
        _multiply(places[1:], kind, matrix.factor)
    if places is not targets:
        for target, place, n in zip(targets, places, per_element, strict=False):
            target.copy_(place[:, skip // n : skip // n + target.shape[1]])


def _multiply(groups: list[torch.Tensor], kind: BlockType, factor: float) -> None:
    """Multiply scales, and move offsets so that rounding the product does not move the weights."""
    scale, *offsets = groups
    exact = scale.float() * factor
    scale.copy_(exact)
    if offsets and codes_of(kind).has_offset:
        ratio = torch.where(scale == 0, 1.0, exact / scale.float())
        offsets[0].copy_(offsets[0].float() * ratio)


@functools.cache
def kernel(kind: BlockType, packing: Packing, dtype: torch.dtype, has_offset: bool) -> Kernel:
    """Converts rows of blocks; compiled on first use.

    Arguments: rows of blocks, as bytes; of codes, scales and, if there are any, offsets; how many;
    blocks in each.
    """
    names = ["codes", "scale", "offset"][: 2 + has_offset]
    sizes = [kind.block_size * packing.stored_bits // 8]
    sizes += [kind.block_size // packing.group] * (len(names) - 1)

    def convert(
        tile: Value,  # noqa: ARG001
        x: Rows,
        count: Value,
        blocks: Value,
        **targets: Rows,
    ) -> None:
        places = list(zip(targets.values(), sizes, strict=True))
        for row in loop(0, count):
            for block in loop(0, blocks):
                source = Block(x[row] + block * kind.type_size)
                groups = GroupSink(kind, packing, [t[row] + block * size for t, size in places])
                decoder_of(kind)(source, groups)
                groups.finish()

    targets = dict(zip(names, (rows(I8), rows(dtype), rows(dtype)), strict=False))
    name = f"convert_{kind.name}_{packing.bits}_{packing.group}_{dtype}"
    return Kernel(name, convert, x=rows(I8), **targets, count=I64, blocks=I64)


class GroupSink(Sink):
    """Gathers a whole block, so that scales and offsets are computed for all of its groups at once.

    Decoders of codes hand over 16 weights at a time.
    """

    def __init__(self, kind: BlockType, packing: Packing, targets: list[Value]) -> None:
        self._range = codes_of(kind)
        self._packing = packing
        self._codes, self._scale = targets[:2]
        self._offset = targets[2] if len(targets) > 2 else None
        element = self._scale.kind.element
        assert element is not None
        self._element = element
        self._taken: dict[int, Scaled] = {}
        self._normal = True

    def take(self, offset: int, weights: Scaled) -> None:
        codes, plus = weights.codes, weights.plus
        if weights.negative is not None:
            codes = codes.negate_where(weights.negative)
        if weights.minus is not None:
            plus = weights.minus * -1.0
        self._taken[offset // _HALF] = replace(weights, codes=codes, plus=plus)
        self._normal &= weights.normal

    def put(self, offset: int, value: Value, normal: bool = True) -> None:
        raise TypeError("dense weights have no groups")

    def finish(self) -> None:
        """Write the block."""
        halves = [self._taken[half] for half in range(len(self._taken))]
        if self._range.group < self._packing.group:
            self._nearest(halves)
        else:
            self._exact(halves)

    def _round(self, value: Value) -> tuple[Value, Value]:
        """In the layout's dtype, and that in float32."""
        bits = rounded(value, self._element, self._normal)
        return bits, widened(bits, self._element)

    def _put(self, half: int, codes: Value) -> None:
        """Write 16 codes as they are kept, of 8 bits each."""
        place = half * _HALF * self._packing.stored_bits // 8
        if self._packing.apart:
            pass
        elif self._packing.planes:
            codes = _nibbles((codes + 8) >> 4).concat(_nibbles(codes))
        elif self._packing.bits == 4:
            codes = _nibbles(codes)
        store(self._codes + place, codes)

    def _put_offsets(self, offsets: Value) -> None:
        if self._offset is not None:
            store(self._offset, self._packing.offset(offsets))

    def _put_scales(self, scales: Value) -> None:
        scales = scales * 16.0 if self._packing.planes else scales
        store(self._scale, self._round(scales)[0])

    def _exact(self, halves: list[Scaled]) -> None:
        first, step = self._packing.place(self._range)
        together = self._packing.group // _HALF  # halves in a group
        heads = halves[::together]
        scales = collect([head.scale for head in heads])
        _, scale = self._round(scales * float(step) if step > 1 else scales)
        is_good: list[Value] | None = None
        one = 16 if self._packing.planes else 1  # what is kept of weights that are all one value
        offsets = [head.plus for head in heads if head.plus is not None]
        shifts = [head.shift for head in heads if head.shift is not None]
        if offsets:
            # Divided by the rounded scale: so rounding it does not move the middle of the weights.
            plus = collect(offsets)
            above = plus + scales * float(first)
            # Without a scale, or with one so small that the offset leaves the range or the
            # precision of the dtype, all weights of the group are one value.
            limit = 2.0**15 if self._element is F16 else 2.0**22
            good = _absolute(above) < _absolute(scale) * limit
            middle = plus + scales * ((self._range.low + self._range.high) / 2)
            middle = middle * (1 / one)
            self._put_offsets(good.select(above / scale, 0.0))
            scale = good.select(scale, middle)
            is_good = good.lanes()
        elif shifts:
            self._put_offsets(collect(shifts) + first / step)
        else:
            self._put_offsets(scales.filled(first / step))
        self._put_scales(scale)
        for i, half in enumerate(halves):
            kept = half.codes - first if first else half.codes
            kept = kept.shift_signed(1) if step == 2 else kept
            if is_good is not None:
                kept = is_good[i // together].splat(len(kept)).select(kept, one)
            self._put(i, kept)

    def _nearest(self, halves: list[Scaled]) -> None:
        """Groups of two halves with a scale each: the nearest codes under a new one.

        If there is a scale under which one of the halves stays exact and which is not much larger
        than the smallest possible, which makes the largest weight 127, then that.
        """
        lasts, scales = [], []
        for half in halves:
            largest = _largest(_absolute(half.codes.to_float(signed=True)))
            lasts.append(_absolute(half.scale) * largest)
            scales.append(_absolute(half.scale))
        first, second = (collect(lasts[side::2]) for side in range(2))
        smallest = maximum(first, second) * (1 / _GREATEST)
        best = smallest.filled(1.0)
        best = best + best  # anything above the square root of 2
        for side in range(2):
            # The half's own scale by a whole number: as large a one as leaves no code past 127.
            ratio = collect(scales[side::2]) / smallest
            parts = ratio.to_int().to_float()
            larger = ratio / parts
            usable = smallest.filled(0.5) < parts
            better = larger < best
            best = usable.select(better.select(larger, best), best)
        # Half of the weights exact, the others' error grows with the scale.
        good = best < 2.0**0.5
        new = smallest * good.select(best, 1.0)
        is_positive = smallest.filled(0.0) < smallest
        factors = is_positive.select(1.0 / new, 0.0).lanes()
        self._put_scales(is_positive.select(new, smallest))
        self._put_offsets(smallest.filled(0.0))
        for i, half in enumerate(halves):
            factor = half.scale * factors[i // 2]
            kept = _nearest(half.codes.to_float(signed=True) * factor)
            self._put(i, kept)


def _absolute(x: Value) -> Value:
    """Floats without their signs."""
    return (x.bitcast(I32) & 0x7FFFFFFF).bitcast(F32)


def _largest(x: Value) -> Value:
    """The greatest of floats, none negative; a NaN is greater than any."""
    # Bits of such floats are in the order of their values.
    bits = x.bitcast(I32)
    while len(bits) > 1:
        half = len(bits) // 2
        a, b = bits[:half], bits[half:]
        bits = a.below(b).select(b, a)
    return bits.bitcast(F32)


def _nearest(x: Value) -> Value:
    """Floats rounded to codes of 8 bits, to even, none past the greatest."""
    x = (x < -float(_GREATEST)).select(x.filled(-float(_GREATEST)), x)
    x = (x > float(_GREATEST)).select(x.filled(float(_GREATEST)), x)
    return (x + WHOLE).bitcast(I32).trunc(I8)


def _nibbles(codes: Value) -> Value:
    """The low 4 bits of each two bytes as one byte, the first in its low half."""
    pairs = codes.bitcast(I16)
    return (pairs & 0x0F | pairs >> 4 & 0xF0).trunc(I8)
