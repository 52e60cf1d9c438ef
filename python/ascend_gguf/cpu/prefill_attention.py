"""Attention of neighbouring tokens to the same keys, as products of matrices, in bfloat16.

What :mod:`.paged_attention` does for each token is done here for a block of them: keys and values
are read once for all, laid out for the instruction that adds up products of pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from llvmlite import ir

from ascend_gguf.codegen.control import fold, minimum, repeat
from ascend_gguf.codegen.floats import constant, largest, load, maximum, power_of_two, save, total
from ascend_gguf.codegen.program import Program, float_of, pointer
from ascend_gguf.codegen.vectors import (
    BFLOAT_INSTRUCTIONS,
    F32,
    I16,
    I32,
    I64,
    LANES,
    Vector,
    fetch,
    restored,
    stored,
)
from ascend_gguf.cpu.dot import TOTAL, multiply_add_pairs

#: The most rows, each of a token and a query head, that a thread takes at a time.
ROWS = 64
# Rows and vectors multiplied together.
_ROWS, _VECTORS = 4, 4
# Keys whose scores are computed before their values are looked at.
_KEYS = _VECTORS * LANES
_PAIRS = 2 * LANES
_LOG2_E = 1.4426950408889634
# Less than any score.
_NOTHING = -1e30


def takes(query: torch.Tensor, keys: torch.Tensor) -> bool:
    """Whether this is for tensors of these dtypes and sizes, on this processor."""
    is_bfloat = query.dtype == keys.dtype == torch.bfloat16
    return BFLOAT_INSTRUCTIONS and is_bfloat and query.shape[-1] % _PAIRS == 0


def blocks(requests: np.ndarray, lengths: np.ndarray, window: int, most: int) -> np.ndarray:
    """Up to ``most`` neighbouring tokens of one request each, those with the most keys first.

    Returns:
        int64 ``[blocks, 4]``: the first token, how many; the first key that any attends to, and
        where the keys end.
    """
    is_first = np.flatnonzero(np.diff(requests, prepend=-1))
    stops = np.append(is_first[1:], len(requests))
    firsts = np.concatenate([np.arange(*run, most) for run in zip(is_first, stops, strict=True)])
    counts = np.diff(firsts, append=len(requests))
    ends = np.maximum.reduceat(lengths, firsts)
    starts = np.minimum.reduceat(lengths, firsts) - 1 - window
    found = np.stack([firsts, counts, np.maximum(starts, 0), ends], axis=1)
    return np.ascontiguousarray(found[np.argsort(-ends, kind="stable")])


@functools.cache
def program(wide_slots: bool, heads: int, head_size: int, value_size: int) -> Program:
    """A tile is a block of tokens with as many query heads, that share a key head.

    Args:
        wide_slots: slots are of 64 bits, not of 32.
    """
    rows = -(-tokens_together(heads) * heads // _ROWS) * _ROWS
    sizes = {
        "queries": 2 * rows * head_size,
        "key_pairs": 2 * _KEYS * head_size,
        "value_pairs": 2 * _KEYS * value_size,
        "scores": 4 * rows * _KEYS,
        "weights": 2 * rows * _KEYS,
        "sums": 4 * rows * value_size,
        "highest": 4 * rows,
        "totals": 4 * rows * LANES,
    }

    def write(builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace) -> None:
        place = 0
        for name, size in sizes.items():
            setattr(given, name, builder.add(given.scratch, I64(place)))
            place += -(-size // 64) * 64
        _Block(builder, tile, given, wide_slots, heads, head_size, value_size).write()

    return Program(
        "query query_stride keys keys_stride values values_stride slots slots_stride requests "
        "lengths blocks out tiles_per_block tiles_per_kv_head scale window",
        write,
        scratch=sum(-(-size // 64) * 64 for size in sizes.values()),
    )


def tokens_together(heads: int) -> int:
    """The most tokens of a block, if as many query heads are taken with each."""
    return max(1, ROWS // heads)


class _Block:
    """Writes what is done with a tile: softmax as it goes, rescaled when the maximum grows."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        tile: ir.Value,
        given: SimpleNamespace,
        wide_slots: bool,
        heads: int,
        head_size: int,
        value_size: int,
    ) -> None:
        self._builder, self._given = builder, given
        self._heads, self._head_size, self._value_size = heads, head_size, value_size
        self._slot_type = I64 if wide_slots else I32
        self._part = builder.srem(tile, given.tiles_per_block)
        kv_head = builder.sdiv(self._part, given.tiles_per_kv_head)
        self._key_place = builder.mul(kv_head, I64(head_size))
        self._value_place = builder.mul(kv_head, I64(value_size))
        place = builder.mul(builder.sdiv(tile, given.tiles_per_block), I64(4))
        block = pointer(builder, given.blocks, I64, place)
        self._token, self._tokens, self._first, self._stop = (
            builder.load(builder.gep(block, [I64(i)])) for i in range(4)
        )
        self._rows = builder.mul(self._tokens, I64(heads))
        request = builder.load(pointer(builder, given.requests, I64, self._token))
        self._slots = pointer(
            builder, given.slots, self._slot_type, builder.mul(request, given.slots_stride)
        )

    def write(self) -> None:
        builder = self._builder
        self._start_rows()
        repeat(builder, self._first, self._stop, _KEYS, self._chunk)
        self._write_out()

    def _in_scratch(self, name: str, element: ir.Type, index: ir.Value) -> ir.Value:
        return pointer(self._builder, getattr(self._given, name), element, index)

    def _row_of(self, name: str, element: ir.Type, size: int, row: ir.Value) -> ir.Value:
        return self._in_scratch(name, element, self._builder.mul(row, I64(size)))

    def _of_token(self, i: ir.Value, stride: ir.Value, size: int) -> ir.Value:
        """Where a token's heads begin in a tensor of all tokens."""
        builder = self._builder
        place = builder.mul(builder.add(self._token, i), stride)
        return builder.add(place, builder.mul(self._part, I64(self._heads * size)))

    def _start_rows(self) -> None:
        """Queries to where they are neighbours; sums of nothing."""
        builder, given = self._builder, self._given

        def token(i: ir.Value) -> None:
            place = self._of_token(i, given.query_stride, self._head_size)
            source = pointer(builder, given.query, I16, place)
            target = self._row_of("queries", I16, self._heads * self._head_size, i)
            for k in range(0, self._heads * self._head_size, _PAIRS):
                _write(builder, target, I64(k), _read(builder, source, I64(k), I16, _PAIRS))

        def row(i: ir.Value) -> None:
            for name, size in (("sums", self._value_size), ("totals", LANES)):
                sums = self._row_of(name, F32, size, i)
                for k in range(0, size, LANES):
                    save(builder, sums, k, constant(builder, 0.0, LANES), torch.float32)
            builder.store(F32(_NOTHING), self._in_scratch("highest", F32, i))

        repeat(builder, I64(0), self._tokens, 1, token)
        repeat(builder, I64(0), self._rows, 1, row)

    def _chunk(self, start: ir.Value) -> None:
        """All rows with some keys."""
        builder = self._builder
        count = minimum(builder, builder.sub(self._stop, start), I64(_KEYS))
        vectors = builder.sdiv(builder.add(count, I64(LANES - 1)), I64(LANES))
        pairs = builder.sdiv(builder.add(count, I64(1)), I64(2))
        repeat(builder, I64(0), vectors, 1, functools.partial(self._lay_out_keys, start))
        repeat(builder, I64(0), pairs, 1, functools.partial(self._lay_out_values, start))
        after = builder.append_basic_block()
        choice = builder.switch(vectors, after)
        for n in range(1, _VECTORS + 1):
            choice.add_case(I64(n), builder.append_basic_block())
            builder.position_at_end(choice.cases[-1][1])
            repeat(builder, I64(0), self._rows, _ROWS, functools.partial(self._score, n))
            builder.branch(after)
        builder.position_at_end(after)
        repeat(builder, I64(0), self._rows, 1, functools.partial(self._weigh, start))
        repeat(builder, I64(0), self._rows, _ROWS, functools.partial(self._add_values, pairs))

    def _cached(
        self, address: ir.Value, stride: ir.Value, place: ir.Value, key: ir.Value
    ) -> ir.Value:
        """The row of the cache that a key, or the last there is, has."""
        builder = self._builder
        key = minimum(builder, key, builder.sub(self._stop, I64(1)))
        slot = builder.load(builder.gep(self._slots, [key]))
        slot = slot if slot.type == I64 else builder.zext(slot, I64)
        return pointer(builder, address, I16, builder.add(builder.mul(slot, stride), place))

    def _rows_of_cache(
        self, name: str, place: ir.Value, size: int, first: ir.Value, count: int
    ) -> list[ir.Value]:
        """The rows of ``keys`` or ``values`` of some keys; the next chunk's are asked for."""
        builder = self._builder
        cache = getattr(self._given, name), getattr(self._given, f"{name}_stride"), place
        keys = [builder.add(first, I64(i)) for i in range(count)]
        for key in keys:
            row = self._cached(*cache, builder.add(key, I64(_KEYS)))
            fetch(builder, row, 2 * size, cache=2)
        return [self._cached(*cache, key) for key in keys]

    def _lay_out_keys(self, start: ir.Value, vector: ir.Value) -> None:
        """Sixteen keys: pairs of numbers at the same places of each become neighbours."""
        builder = self._builder
        first = builder.add(start, builder.mul(vector, I64(LANES)))
        rows = self._rows_of_cache("keys", self._key_place, self._head_size, first, LANES)
        for k in range(0, self._head_size, _PAIRS):
            pairs = [_read(builder, builder.gep(row, [I64(k)]), I64(0), I32, LANES) for row in rows]
            for i, column in enumerate(_transposed(builder, pairs)):
                place = builder.add(vector, I64((k // 2 + i) * _VECTORS))
                target = self._row_of("key_pairs", I32, LANES, place)
                _write(builder, target, I64(0), column)

    def _lay_out_values(self, start: ir.Value, pair: ir.Value) -> None:
        """Two values: numbers at the same place become neighbours."""
        builder = self._builder
        first = builder.add(start, builder.mul(pair, I64(2)))
        rows = self._rows_of_cache("values", self._value_place, self._value_size, first, 2)
        target = self._row_of("value_pairs", I16, 2 * self._value_size, pair)
        for k in range(0, self._value_size, LANES):
            a, b = (_read(builder, row, I64(k), I16, LANES) for row in rows)
            places = [lane + LANES * side for lane in range(LANES) for side in range(2)]
            _write(builder, target, I64(2 * k), _shuffled(builder, a, b, places))

    def _products(
        self,
        rows: list[ir.Value],
        source: Callable[[ir.Value, int], ir.Value],
        count: ir.Value,
        totals: list[ir.Value],
    ) -> list[ir.Value]:
        """Add to totals, of each row all of its vectors', products of pairs.

        Args:
            rows: addresses of pairs of bfloat16, each for all numbers of vectors to meet.
            source: the address of a vector, from the number of the pair and of the vector.
        """
        builder, width = self._builder, len(totals) // len(rows)

        def pair(i: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            vectors = [_read(builder, source(i, n), I64(0), I32, LANES) for n in range(width)]
            following = []
            for r, row in enumerate(rows):
                both = Vector(builder, builder.load(builder.gep(row, [i]))).repeated(LANES).value
                for vector, before in zip(vectors, totals[r * width :], strict=False):
                    following.append(multiply_add_pairs(builder, vector, both, before))
            return following

        return fold(builder, I64(0), count, 1, totals, pair)

    def _score(self, width: int, row: ir.Value) -> None:
        """Products of some rows with all keys there are."""
        builder = self._builder
        indices = [builder.add(row, I64(r)) for r in range(_ROWS)]
        queries = [self._row_of("queries", I32, self._head_size // 2, i) for i in indices]

        def keys(pair: ir.Value, vector: int) -> ir.Value:
            address = self._row_of("key_pairs", I32, _VECTORS * LANES, pair)
            return builder.gep(address, [I64(vector * LANES)])

        none = ir.Constant(TOTAL, [F32(0.0)] * LANES)
        totals = self._products(queries, keys, I64(self._head_size // 2), [none] * (_ROWS * width))
        for r, i in enumerate(indices):
            scores = self._row_of("scores", F32, _KEYS, i)
            for n, sum_ in enumerate(totals[r * width : (r + 1) * width]):
                save(builder, scores, n * LANES, Vector(builder, sum_), torch.float32)

    def _weigh(self, start: ir.Value, row: ir.Value) -> None:
        """A row's scores become weights, relative to the maximum, which may grow."""
        builder, given = self._builder, self._given
        source = self._row_of("scores", F32, _KEYS, row)
        self._hide_unseen(start, row, source)
        scores = [load(builder, source, n, torch.float32, LANES) for n in range(0, _KEYS, LANES)]
        place = self._in_scratch("highest", F32, row)
        highest = Vector(builder, builder.load(place))
        greatest = maximum(largest(functools.reduce(maximum, scores)), highest)
        scale = Vector(builder, float_of(builder, given.scale)) * _LOG2_E
        with builder.if_then(builder.fcmp_unordered("!=", greatest.value, highest.value)):
            builder.store(greatest.value, place)
            self._shrink(row, power_of_two((highest - greatest) * scale))
        spread, scale = greatest.repeated(LANES), scale.repeated(LANES)
        target = self._row_of("weights", I16, _KEYS, row)
        place = self._row_of("totals", F32, LANES, row)
        added = load(builder, place, 0, torch.float32, LANES)
        for n, score in enumerate(scores):
            weight = power_of_two((score - spread) * scale)
            # The sum is of what is multiplied with, so that weights are 1 together.
            bits = stored(weight, torch.bfloat16, usual=True)
            _write(builder, target, I64(n * LANES), bits.value)
            added = added + restored(bits, torch.bfloat16)
        save(builder, place, 0, added, torch.float32)

    def _hide_unseen(self, start: ir.Value, row: ir.Value, scores: ir.Value) -> None:
        """Scores of keys that a row does not attend to, if there are any, become nothing."""
        builder, given = self._builder, self._given
        token = builder.add(self._token, builder.sdiv(row, I64(self._heads)))
        length = builder.load(pointer(builder, given.lengths, I64, token))
        last = builder.sub(builder.sub(length, I64(1)), start)
        first = builder.sub(last, given.window)
        is_late = builder.icmp_signed(">", first, I64(0))
        is_early = builder.icmp_signed("<", last, I64(_KEYS - 1))
        with builder.if_then(builder.or_(is_late, is_early)):
            first, last = (Vector(builder, bound).repeated(LANES).value for bound in (first, last))
            for n in range(0, _KEYS, LANES):
                lanes = ir.Constant(ir.VectorType(I64, LANES), [I64(n + i) for i in range(LANES)])
                is_seen = builder.and_(
                    builder.icmp_signed(">=", lanes, first), builder.icmp_signed("<=", lanes, last)
                )
                score = load(builder, scores, n, torch.float32, LANES)
                nothing = constant(builder, _NOTHING, LANES)
                score = Vector(builder, is_seen).chosen(score, nothing)
                save(builder, scores, n, score, torch.float32)

    def _shrink(self, row: ir.Value, share: Vector) -> None:
        """What a row has summed up, as the maximum has grown."""
        builder, share = self._builder, share.repeated(LANES)
        for name, size in (("sums", self._value_size), ("totals", LANES)):
            sums = self._row_of(name, F32, size, row)
            for k in range(0, size, LANES):
                sum_ = load(builder, sums, k, torch.float32, LANES)
                save(builder, sums, k, sum_ * share, torch.float32)

    def _add_values(self, pairs: ir.Value, row: ir.Value) -> None:
        """Weighted values of some rows, some columns at a time."""
        builder = self._builder
        indices = [builder.add(row, I64(r)) for r in range(_ROWS)]
        weights = [self._row_of("weights", I32, _KEYS // 2, i) for i in indices]
        sums = [self._row_of("sums", F32, self._value_size, i) for i in indices]
        columns = range(0, self._value_size, LANES)
        for n in range(0, len(columns), _VECTORS):
            strip = columns[n : n + _VECTORS]

            def values(pair: ir.Value, vector: int, strip: range = strip) -> ir.Value:
                address = self._row_of("value_pairs", I32, self._value_size, pair)
                return builder.gep(address, [I64(strip[vector])])

            before = [
                load(builder, address, k, torch.float32, LANES).value
                for address in sums
                for k in strip
            ]
            after = self._products(weights, values, pairs, before)
            for i, sum_ in enumerate(after):
                address, k = sums[i // len(strip)], strip[i % len(strip)]
                save(builder, address, k, Vector(builder, sum_), torch.float32)

    def _write_out(self) -> None:
        builder, given = self._builder, self._given
        stride = builder.mul(given.tiles_per_block, I64(self._heads * self._value_size))

        def token(i: ir.Value) -> None:
            place = self._of_token(i, stride, self._value_size)
            for h in range(self._heads):
                row = builder.add(builder.mul(i, I64(self._heads)), I64(h))
                sums = self._row_of("sums", F32, self._value_size, row)
                totals = self._row_of("totals", F32, LANES, row)
                sum_ = total(load(builder, totals, 0, torch.float32, LANES))
                share = Vector(builder, builder.fdiv(F32(1.0), sum_.value)).repeated(LANES)
                index = builder.add(place, I64(h * self._value_size))
                out = pointer(builder, given.out, I16, index)
                for k in range(0, self._value_size, LANES):
                    value = load(builder, sums, k, torch.float32, LANES) * share
                    save(builder, out, k, value, torch.bfloat16)

        repeat(builder, I64(0), self._tokens, 1, token)


def _read(
    builder: ir.IRBuilder, start: ir.Value, index: ir.Value, element: ir.Type, count: int
) -> ir.Value:
    kind = ir.VectorType(element, count)
    address = builder.bitcast(builder.gep(start, [index]), kind.as_pointer())
    return builder.load(address, align=2)


def _write(builder: ir.IRBuilder, start: ir.Value, index: ir.Value, value: ir.Value) -> None:
    address = builder.bitcast(builder.gep(start, [index]), value.type.as_pointer())
    builder.store(value, address, align=2)


def _shuffled(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, places: list[int]) -> ir.Value:
    """Numbers of two vectors: those of the second come after those of the first."""
    mask = ir.Constant(ir.VectorType(I32, len(places)), [I32(place) for place in places])
    return builder.shuffle_vector(a, b, mask)


def _transposed(builder: ir.IRBuilder, rows: list[ir.Value]) -> list[ir.Value]:
    """Columns of as many rows as each has numbers; halves change places, then their halves."""
    count, rows = len(rows), list(rows)
    distance = count // 2
    while distance:
        for i in (i for i in range(count) if not i & distance):
            a, b = rows[i], rows[i + distance]
            low = [k if not k & distance else count + k - distance for k in range(count)]
            high = [k + distance if not k & distance else count + k for k in range(count)]
            rows[i], rows[i + distance] = (_shuffled(builder, a, b, p) for p in (low, high))
        distance //= 2
    return rows
