"""Where a decoder writes when its weights are only to be multiplied: they are never stored.

A decoder of :mod:`ascend_gguf.decoders` that is given :class:`Products` as its target
becomes a fused kernel: the products of one row of a matrix with one or more vectors.  Where many
weights are whole numbers with one scale and one offset, the whole numbers are multiplied, and
scale and offset (times the sum of the vector's numbers) are applied once for all of them.  So
weights are never rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from llvmlite import ir

from ascend_gguf.codegen.vectors import (
    BFLOAT,
    F32,
    I16,
    I32,
    I64,
    LANES,
    Coded,
    Vector,
    intrinsic,
    looked_up_words,
)
from ascend_gguf.decoders.sink import Scaled, Target

#: In what products are summed: float32, later to be added up.
TOTAL = ir.VectorType(F32, LANES)
ZERO = ir.Constant(TOTAL, [ir.Constant(F32, 0.0)] * LANES)


@dataclass(frozen=True)
class _Factors:
    """Sixteen weights without their offset: ``scale floats``.

    Attributes:
        coded: the floats as whole numbers of a few values, if they are that.
    """

    floats: Vector
    coded: Coded | None
    scale: Vector


class Products(Target):
    """Products of a block's weights with the numbers they meet in one or more vectors.

    Args:
        vectors: for each vector, the address of the number that meets the block's first weight.
        dtype: of the vectors: float32; or bfloat16, for a type of which all weights are coded, on
            a processor that multiplies those.
        sums: for each vector, the address of the sum of the numbers that meet the weights of the
            block's first offset; the others follow.
        totals: what to add products to: one or more :data:`TOTAL` for each vector, by turns.
        count: as of ``Target``.

    Attributes:
        totals: the new totals, after :meth:`finish`.
        all_coded: whether all weights are whole numbers of a few values.
        offset_group: how many weights have an offset in common; None without offsets.
    """

    def __init__(
        self,
        builder: ir.IRBuilder,
        vectors: list[ir.Value],
        dtype: torch.dtype,
        sums: list[ir.Value],
        totals: list[ir.Value],
        count: int,
    ) -> None:
        self._builder = builder
        self._vectors = vectors
        self._dtype = dtype
        self._sums = sums
        self.totals = list(totals)
        self.count = count
        self.all_coded = True
        self.offset_group: int | None = None
        self._waiting: dict[int, _Factors] = {}  # for their neighbours, by the first weight
        self._offsets: dict[int, tuple[Vector, str]] = {}  # by the first weight that has it
        self._stored: dict[ir.Value, ir.Value] = {}

    def take(self, offset: int, weights: Scaled) -> None:
        numbers, shift, negative = weights.numbers, weights.shift, weights.negative
        floats = numbers.floats(signed=True)
        coded = numbers.coded if shift is None and negative is None else None
        self.all_coded &= coded is not None
        floats = floats if shift is None else floats + shift
        floats = floats if negative is None else floats.negated_where(negative)
        for value, operation in ((weights.plus, "fadd"), (weights.minus, "fsub")):
            if value is not None:
                self._offsets[offset] = value, operation
        factors = _Factors(floats, coded, weights.scale)
        other = self._waiting.pop(offset ^ LANES, None)
        if other is None:
            self._waiting[offset] = factors
        else:
            pair = (other, factors) if offset & LANES else (factors, other)
            self._add_pair(offset & ~LANES, *pair)

    def put(self, offset: int, value: Vector, usual: bool = True) -> None:  # noqa: ARG002
        self.all_coded = False
        for start in range(0, len(value), LANES):
            self._add_floats(offset + start, value[start : start + LANES])

    def finish(self) -> None:
        """All weights of the block have come."""
        assert not self._waiting
        if self._offsets:
            self._add_offsets()

    def _add_floats(self, offset: int, value: Vector) -> None:
        totals = []
        for x, total in zip(self._numbers(offset, len(value)), self._taken(), strict=True):
            if len(value) == LANES:
                totals.append(multiply_add(self._builder, value.value, x.value, total))
            else:
                totals.append(self._builder.fadd(total, self._padded(value * x)))
        self.totals += totals

    def _add_pair(self, offset: int, first: _Factors, second: _Factors) -> None:
        """Thirty-two weights."""
        is_one_scale = first.scale is second.scale or (
            first.scale.lane is not None and first.scale.lane == second.scale.lane
        )
        if self._dtype == torch.bfloat16:
            products = self._bfloat_products(offset, first, second)
            scale = self._spread(first.scale)
            if not is_one_scale:
                # A lane has the products of two neighbours.
                halves = (s.scale.repeated(LANES // 2) for s in (first, second))
                scale = next(halves).then(next(halves))
        elif is_one_scale:
            products = [
                multiply_add(self._builder, second.floats.value, b.value, (first.floats * a).value)
                for a, b in zip(self._numbers(offset), self._numbers(offset + LANES), strict=True)
            ]
            scale = self._spread(first.scale)
        else:
            for start, weights in ((offset, first), (offset + LANES, second)):
                self._add_floats(start, weights.floats * self._spread(weights.scale))
            return
        self.totals += [
            multiply_add(self._builder, product, scale.value, total)
            for product, total in zip(products, self._taken(), strict=True)
        ]

    def _bfloat_products(self, offset: int, first: _Factors, second: _Factors) -> list[ir.Value]:
        """Products of whole numbers, which are exact, added up in pairs."""
        if first.coded is None or second.coded is None:
            raise TypeError("vectors of bfloat16 meet weights of a few values only")
        weights = _bfloats(first.coded, second.coded)
        return [
            multiply_add_pairs(self._builder, weights, _load(self._builder, x, weights.type), ZERO)
            for x in self._at(offset)
        ]

    def _add_offsets(self) -> None:
        """Offsets, each times the sum of the numbers it meets."""
        builder = self._builder
        values = [self._offsets[place] for place in sorted(self._offsets)]
        value, operation = values[0]
        if value.lane is not None:
            value = value.lane[0]
            lanes = [v.lane[1] for v, _ in values if v.lane is not None]
            # In order, once or as often as puts share it.
            assert lanes == sorted(lanes)
            assert set(lanes) == set(range(len(value)))
        self.offset_group = len(values) * LANES // len(value)
        totals = []
        for pointer, total in zip(self._sums, self._taken(), strict=True):
            sums = Vector(builder, _load(builder, pointer, value.value.type))
            totals.append(getattr(builder, operation)(total, self._padded(value * sums)))
        self.totals += totals

    def _taken(self) -> list[ir.Value]:
        """A total for each vector: others than the last time, so that nothing waits for those."""
        count = len(self._vectors)
        taken = self.totals[:count]
        del self.totals[:count]
        return taken

    def _at(self, offset: int) -> list[ir.Value]:
        return [self._builder.gep(pointer, [I64(offset)]) for pointer in self._vectors]

    def _numbers(self, offset: int, count: int = LANES) -> list[Vector]:
        """What weights from ``offset`` on meet in each vector, as float32."""
        return [loaded(self._builder, x, self._dtype, count) for x in self._at(offset)]

    def _spread(self, scale: Vector) -> Vector:
        """A scale in all lanes."""
        if scale.lane is None:
            return scale.repeated(LANES)
        # By way of memory: to read one number into all lanes costs nothing.
        builder, (vector, lane) = self._builder, scale.lane
        if vector.value not in self._stored:
            with builder.goto_entry_block():
                place = builder.alloca(vector.value.type)
            builder.store(vector.value, place)
            self._stored[vector.value] = builder.bitcast(place, F32.as_pointer())
        number = builder.load(builder.gep(self._stored[vector.value], [I64(lane)]))
        return Vector(builder, number).repeated(LANES)

    def _padded(self, value: Vector) -> ir.Value:
        """Up to sixteen floats, and zeros."""
        if not isinstance(value.value.type, ir.VectorType):
            return self._builder.insert_element(ZERO, value.value, I32(0))
        count = len(value)
        none = ir.Constant(value.value.type, [ir.Constant(F32, 0.0)] * count)
        places = [I32(min(i, count)) for i in range(LANES)]
        mask = ir.Constant(ir.VectorType(I32, LANES), places)
        return self._builder.shuffle_vector(value.value, none, mask)


def multiply_add(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
    """``a b + total``, rounded once where the processor can."""
    return intrinsic(builder, f"llvm.fmuladd.v{a.type.count}f32", a.type, a, b, total)


def multiply_add_pairs(
    builder: ir.IRBuilder, a: ir.Value, b: ir.Value, total: ir.Value
) -> ir.Value:
    """To each lane of ``total`` two products of bfloat16; the instruction of AVX-512.

    Args:
        a, b: 512 bits of any type.
    """
    kind = ir.VectorType(BFLOAT, 2 * LANES)
    both = [builder.bitcast(value, kind) for value in (a, b)]
    return intrinsic(builder, "llvm.x86.avx512bf16.dpbf16ps.512", TOTAL, total, *both)


def loaded(builder: ir.IRBuilder, pointer: ir.Value, dtype: torch.dtype, count: int) -> Vector:
    """``count`` float32 or bfloat16 numbers, as float32."""
    if dtype == torch.float32:
        return Vector(builder, _load(builder, pointer, ir.VectorType(F32, count)))
    bits = Vector(builder, _load(builder, pointer, ir.VectorType(I16, count)))
    return (bits.widened(32) << 16).as_floats()


def sum_of(builder: ir.IRBuilder, total: ir.Value) -> ir.Value:
    """The sum of a vector's lanes, halves first."""
    value = Vector(builder, total)
    while len(value) > 1:
        half = len(value) // 2
        value = value[:half] + value[half:]
    return value[0].value


def _load(builder: ir.IRBuilder, pointer: ir.Value, kind: ir.Type) -> ir.Value:
    return builder.load(builder.bitcast(pointer, kind.as_pointer()), align=2)


def _bfloats(first: Coded, second: Coded) -> ir.Value:
    """The bits, as bfloat16, of thirty-two whole numbers."""
    source = first.source.narrowed(8).then(second.source.narrowed(8))
    both = Coded(source, first.shifts + second.shifts, first.numbers)
    tables = [(t.as_bits() >> 16).narrowed(16) for t in both.tables(2 * LANES)]
    return looked_up_words(both.codes(), tables).value
