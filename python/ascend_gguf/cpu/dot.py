"""Where a decoder writes when its weights are only to be multiplied: they are never stored.

A decoder of :mod:`ascend_gguf.decoders` that is given a :class:`DotSink` becomes a GEMV kernel: the
dot products of one row of a matrix with one or more vectors.  Where many weights are codes with one
scale and one offset, the codes are multiplied, and scale and offset (times the sum of the vector's
elements) are applied once for all of them.  So weights are never rounded.
"""

from __future__ import annotations

from dataclasses import dataclass

from ascend_gguf.codegen import (
    BF16,
    F32,
    I8,
    I16,
    I32,
    LANES,
    Value,
    add_pairs,
    collect,
    load,
    local,
    lookup_words,
    multiply_add,
    shuffle,
    splat,
    store,
)
from ascend_gguf.codegen.value import Codebook
from ascend_gguf.decoders.sink import Scaled, Sink


@dataclass(frozen=True, eq=False)
class _Factors:
    """Sixteen weights without their offset: ``scale floats``.

    Attributes:
        codebook: of the floats as codes, if they are that.
    """

    floats: Value
    codebook: Codebook | None
    scale: Value


class DotSink(Sink):
    """Dot products of a block's weights with what they meet in one or more vectors.

    Args:
        vectors: for each vector, the address of the element that meets the block's first weight:
            float32; or bfloat16, on a processor that multiplies it, for a type whose weights all
            have codebooks.
        sums: for each vector, the address of the sum of the elements that meet the weights of the
            block's first offset; the others follow.
        totals: accumulators of 16 lanes, one or more for each vector.
        count: as of ``Sink``.

    Attributes:
        totals: the new totals, after :meth:`finish`.
        has_codebooks: whether all weights are codes with a codebook.
        offset_group: how many weights have an offset in common; None without offsets.
    """

    def __init__(
        self, vectors: list[Value], sums: list[Value], totals: list[Value], count: int
    ) -> None:
        self._vectors = vectors
        self._is_bfloat = any(vector.kind.element is BF16 for vector in vectors)
        self._sums = sums
        self.totals = list(totals)
        self.count = count
        self.has_codebooks = True
        self.offset_group: int | None = None
        self._waiting: dict[int, _Factors] = {}  # for their neighbours, by the first weight
        self._offsets: dict[int, tuple[Value, bool]] = {}  # by the first weight, and if subtracted
        self._stored: dict[Value, Value] = {}

    def take(self, offset: int, weights: Scaled) -> None:
        codes, shift, negative = weights.codes, weights.shift, weights.negative
        floats = codes.to_float(signed=True)
        codebook = codes.codebook if shift is None and negative is None else None
        self.has_codebooks &= codebook is not None
        floats = floats if shift is None else floats + shift
        floats = floats if negative is None else floats.negate_where(negative)
        for value, is_subtracted in ((weights.plus, False), (weights.minus, True)):
            if value is not None:
                self._offsets[offset] = value, is_subtracted
        factors = _Factors(floats, codebook, weights.scale)
        other = self._waiting.pop(offset ^ LANES, None)
        if other is None:
            self._waiting[offset] = factors
        else:
            pair = (other, factors) if offset & LANES else (factors, other)
            self._add_pair(offset & ~LANES, *pair)

    def put(self, offset: int, value: Value, normal: bool = True) -> None:  # noqa: ARG002
        self.has_codebooks = False
        for start in range(0, len(value), LANES):
            self._add_floats(offset + start, value[start : start + LANES])

    def finish(self) -> None:
        """Finish the block, after all of its weights were taken."""
        assert not self._waiting
        if self._offsets:
            self._add_offsets()

    def _add_floats(self, offset: int, value: Value) -> None:
        totals = []
        for x, total in zip(self._met(offset, len(value)), self._taken(), strict=True):
            if len(value) == LANES:
                totals.append(multiply_add(value, x, total))
            else:
                totals.append(total + _padded(value * x))
        self.totals += totals

    def _add_pair(self, offset: int, first: _Factors, second: _Factors) -> None:
        """Thirty-two weights."""
        is_one_scale = first.scale is second.scale or (
            first.scale.lane is not None and first.scale.lane == second.scale.lane
        )
        if self._is_bfloat:
            products = self._bfloat_products(offset, first, second)
            scale = self._spread(first.scale)
            if not is_one_scale:
                # A lane has the products of two neighbours.
                halves = [s.scale.splat(LANES // 2) for s in (first, second)]
                scale = halves[0].concat(halves[1])
        elif is_one_scale:
            products = [
                multiply_add(second.floats, b, first.floats * a)
                for a, b in zip(self._met(offset), self._met(offset + LANES), strict=True)
            ]
            scale = self._spread(first.scale)
        else:
            for start, weights in ((offset, first), (offset + LANES, second)):
                self._add_floats(start, weights.floats * self._spread(weights.scale))
            return
        self.totals += [
            multiply_add(product, scale, total)
            for product, total in zip(products, self._taken(), strict=True)
        ]

    def _bfloat_products(self, offset: int, first: _Factors, second: _Factors) -> list[Value]:
        """Products of codes, which are exact, added up in pairs."""
        if first.codebook is None or second.codebook is None:
            raise TypeError("vectors of bfloat16 meet weights with codebooks only")
        weights = _bfloats(first.codebook, second.codebook)
        none = splat(0.0, LANES)
        return [
            add_pairs(weights, load(x.cast(I16) + offset, 2 * LANES), none) for x in self._vectors
        ]

    def _add_offsets(self) -> None:
        """Offsets, each times the sum of what it meets."""
        values = [self._offsets[place] for place in sorted(self._offsets)]
        value, is_subtracted = values[0]
        if value.lane is not None:
            value = value.lane[0]
            lanes = [v.lane[1] for v, _ in values if v.lane is not None]
            # In order, once or as often as puts share it.
            assert lanes == sorted(lanes)
            assert set(lanes) == set(range(len(value)))
        self.offset_group = len(values) * LANES // len(value)
        totals = []
        for sums, total in zip(self._sums, self._taken(), strict=True):
            product = _padded(value * load(sums, len(value)))
            totals.append(total - product if is_subtracted else total + product)
        self.totals += totals

    def _taken(self) -> list[Value]:
        """A total for each vector: others than the last time, so that nothing waits for those."""
        count = len(self._vectors)
        taken = self.totals[:count]
        del self.totals[:count]
        return taken

    def _met(self, offset: int, count: int = LANES) -> list[Value]:
        """What weights from ``offset`` on meet in each vector, as float32."""
        return [load(x + offset, count) for x in self._vectors]

    def _spread(self, scale: Value) -> Value:
        """A scale in all lanes."""
        if scale.lane is None:
            return scale.splat(LANES)
        # Through memory: loading one float into all lanes is free.
        vector, lane = scale.lane
        if vector not in self._stored:
            self._stored[vector] = local(F32, len(vector))
            store(self._stored[vector], vector)
        return load(self._stored[vector] + lane).splat(LANES)


def _padded(value: Value) -> Value:
    """Up to sixteen floats, and zeros."""
    count = len(value)
    if count == 1:
        return collect([value, *[splat(0.0)] * (LANES - 1)])
    return shuffle(value, splat(0.0, count), [min(i, count) for i in range(LANES)])


def _bfloats(first: Codebook, second: Codebook) -> Value:
    """The bits, as bfloat16, of thirty-two codes."""
    source = first.source.trunc(I8).concat(second.source.trunc(I8))
    both = Codebook(source, first.shifts + second.shifts, first.values)
    return lookup_words(both, lambda code: (code.bitcast(I32) >> 16).trunc(I16), 2 * LANES)
