"""Attention of tokens to their requests' keys and values in a cache of slots, on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import torch
from llvmlite import ir

from ascend_gguf.codegen.control import fold, minimum, repeat
from ascend_gguf.codegen.floats import (
    constant,
    exponential,
    largest,
    load,
    maximum,
    multiply_add,
    save,
    total,
)
from ascend_gguf.codegen.program import Program, float_bits, float_of, pointer
from ascend_gguf.codegen.vectors import F32, I32, I64, LANES, STORED, Vector, fetch
from ascend_gguf.cpu import prefill_attention

# Keys whose scores are computed before their values are looked at; a multiple of LANES.
_KEYS = 64
# Query heads that a thread takes at a time, and the vectors of sums it can hold besides.
_HEADS, _SUMS = 8, 16
# How many keys before it is needed a row is asked for, to come to the second-level cache: slots are
# evenly far apart, so that few rows have places in the first.
_AHEAD = 16
# From how many tokens of a request on, on average, blocks of them are faster.
_BLOCK_TOKENS = 3
# Less than any score.
_NOTHING = -1e30


class Tokens:
    """Tokens and how many keys each attends to: as a rule the same for all layers.

    Args:
        requests: int64 ``[tokens]``, the row of ``slots`` that each token's request has.
        lengths: int64 ``[tokens]``, how many keys of its request each token attends to: at least 1.
        one_each: no request has several tokens; then Python does not look at any number.
    """

    def __init__(
        self, requests: torch.Tensor, lengths: torch.Tensor, *, one_each: bool = False
    ) -> None:
        self.requests, self.lengths = requests, lengths
        self._one_each = one_each
        self._blocks: dict[tuple[int, int], np.ndarray | None] = {}

    def __len__(self) -> int:
        return self.requests.shape[0]

    def blocks(self, window: int, most: int) -> np.ndarray | None:
        """As :func:`.prefill_attention.blocks`, where there are so few that they are faster."""
        if self._one_each or not len(self):
            return None
        key = window, most
        if key not in self._blocks:
            found = prefill_attention.blocks(
                self.requests.numpy(), self.lengths.numpy(), window, most
            )
            self._blocks[key] = found if len(self) >= _BLOCK_TOKENS * len(found) else None
        return self._blocks[key]


def attend(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    tokens: Tokens,
    scale: float,
    window: int | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax attention, each token to the first keys of its request.

    Query heads share key heads in order, evenly.  The sums are float32.

    Args:
        query: ``[tokens, heads, head_size]``: float32, bfloat16 or float16, tokens evenly spaced;
            ``head_size`` a multiple of 16.
        keys: ``[slots, kv_heads, head_size]`` of one of those dtypes, slots evenly spaced.
        values: ``[slots, kv_heads, value_size]``, the same.
        slots: int32 or int64 ``[requests, tokens]``: where the cache holds each token of a request.
        tokens: whose the rows of ``query`` are.
        scale: what products of queries and keys are multiplied with.
        window: of those keys the last ``window + 1`` alone.
        out: ``[tokens, heads, value_size]``, contiguous, of the dtype of ``query``.

    Returns:
        ``out``, or a new tensor.
    """
    count, heads, head_size = query.shape
    kv_heads, value_size = values.shape[1:]
    if out is None:
        out = torch.empty((count, heads, value_size), dtype=query.dtype)
    group = heads // kv_heads
    cache = (
        query.data_ptr(),
        query.stride(0),
        keys.data_ptr(),
        keys.stride(0),
        values.data_ptr(),
        values.stride(0),
        slots.data_ptr(),
        slots.stride(0),
        tokens.requests.data_ptr(),
        tokens.lengths.data_ptr(),
    )
    wide_slots, window = slots.dtype == torch.int64, 1 << 40 if window is None else window
    if prefill_attention.takes(query, keys):
        together = _most_dividing(group, prefill_attention.ROWS)
        found = tokens.blocks(window, prefill_attention.tokens_together(together))
        if found is not None:
            program = prefill_attention.program(wide_slots, together, head_size, value_size)
            program.run(
                len(found) * heads // together,
                *cache,
                found.ctypes.data,
                out.data_ptr(),
                heads // together,
                group // together,
                float_bits(scale),
                window,
            )
            return out
    together = _most_dividing(group, _HEADS)
    program = _attend(query.dtype, keys.dtype, wide_slots, together, head_size, value_size)
    program.run(
        count * heads // together,
        *cache,
        out.data_ptr(),
        heads // together,
        group // together,
        float_bits(scale),
        window,
    )
    return out


def _most_dividing(count: int, most: int) -> int:
    """The largest number up to ``most`` of which ``count`` is a multiple."""
    return next(n for n in range(min(count, most), 0, -1) if count % n == 0)


def takes(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether :func:`attend` takes tensors of these shapes and strides."""
    aligned = query.shape[-1] % LANES == 0 and values.shape[-1] % LANES == 0
    adjacent = all(t.stride()[1:] == (t.shape[2], 1) for t in (query, keys, values))
    return aligned and adjacent and out.is_contiguous() and query.shape[1] % keys.shape[1] == 0


@functools.cache
def _attend(
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    wide_slots: bool,
    heads: int,
    head_size: int,
    value_size: int,
) -> Program:
    """A tile is a token with as many query heads, that share a key head."""

    def write(builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace) -> None:
        _Tile(builder, tile, given, dtype, cache_dtype, wide_slots, heads, head_size, value_size)

    return Program(
        "query query_stride keys keys_stride values values_stride slots slots_stride requests "
        "lengths out tiles_per_token tiles_per_kv_head scale window",
        write,
        scratch=4 * heads * (head_size + value_size + _KEYS),
    )


class _Tile:
    """Writes what is done with a tile: softmax as it goes, rescaled when the maximum grows."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        tile: ir.Value,
        given: SimpleNamespace,
        dtype: torch.dtype,
        cache_dtype: torch.dtype,
        wide_slots: bool,
        heads: int,
        head_size: int,
        value_size: int,
    ) -> None:
        self._builder = builder
        self._dtype, self._cache_dtype = dtype, cache_dtype
        self._heads, self._head_size, self._value_size = heads, head_size, value_size
        self._given = given
        scratch = pointer(builder, given.scratch, F32)
        sizes = (head_size, value_size, _KEYS)
        places = [sum(sizes[:i]) * heads for i in range(3)]
        self._query, self._sums, self._scores = (
            [builder.gep(scratch, [I64(place + h * size)]) for h in range(heads)]
            for place, size in zip(places, sizes, strict=True)
        )
        token = builder.sdiv(tile, given.tiles_per_token)
        part = builder.srem(tile, given.tiles_per_token)
        kv_head = builder.sdiv(part, given.tiles_per_kv_head)
        self._key_place = builder.mul(kv_head, I64(head_size))
        self._value_place = builder.mul(kv_head, I64(value_size))
        request = builder.load(pointer(builder, given.requests, I64, token))
        length = builder.load(pointer(builder, given.lengths, I64, token))
        self._last = builder.sub(length, I64(1))
        self._slot_type = I64 if wide_slots else I32
        self._slots = pointer(
            builder, given.slots, self._slot_type, builder.mul(request, given.slots_stride)
        )
        query_place = builder.add(
            builder.mul(token, given.query_stride), builder.mul(part, I64(heads * head_size))
        )
        self._read_query(pointer(builder, given.query, STORED[dtype], query_place))

        first = builder.sub(builder.sub(length, I64(1)), given.window)
        first = builder.select(builder.icmp_signed(">", first, I64(0)), first, I64(0))
        least, zero = constant(builder, _NOTHING, 1)[0].value, F32(0.0)
        state = fold(builder, first, length, _KEYS, [least, zero] * heads, self._chunk(length))
        self._write_out(tile, state[1::2])

    def _read_query(self, source: ir.Value) -> None:
        """To scratch, times the scale; and sums of nothing."""
        builder = self._builder
        scale = Vector(builder, float_of(builder, self._given.scale))
        for h in range(self._heads):
            for i in range(0, self._head_size, LANES):
                part = load(builder, source, h * self._head_size + i, self._dtype, LANES)
                save(builder, self._query[h], i, part * scale, torch.float32)
            for i in range(0, self._value_size, LANES):
                save(builder, self._sums[h], i, constant(builder, 0.0, LANES), torch.float32)

    def _chunk(self, length: ir.Value) -> Callable[[ir.Value, list[ir.Value]], list[ir.Value]]:
        """``body`` of a :func:`fold` over some keys: each head's maximum and sum of weights."""
        builder = self._builder

        def body(start: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
            stop = minimum(builder, builder.add(start, I64(_KEYS)), length)
            for scores in self._scores:
                for i in range(0, _KEYS, LANES):
                    save(builder, scores, i, constant(builder, _NOTHING, LANES), torch.float32)
            self._score(start, stop)
            following = []
            for h in range(self._heads):
                following += self._weigh(h, *state[2 * h : 2 * h + 2])
            self._add_values(start, stop)
            return following

        return body

    def _row(self, address: ir.Value, stride: ir.Value, place: ir.Value, i: ir.Value) -> ir.Value:
        """Of the cache, that of a request's token."""
        builder = self._builder
        slot = builder.load(builder.gep(self._slots, [i]))
        slot = slot if slot.type == I64 else builder.zext(slot, I64)
        index = builder.add(builder.mul(slot, stride), place)
        return pointer(builder, address, STORED[self._cache_dtype], index)

    def _fetch(
        self, address: ir.Value, stride: ir.Value, place: ir.Value, size: int, i: ir.Value
    ) -> None:
        """Ask memory for a row of the cache that is soon needed: rows may lie anywhere."""
        builder = self._builder
        ahead = minimum(builder, builder.add(i, I64(_AHEAD)), self._last)
        row = self._row(address, stride, place, ahead)
        fetch(builder, row, size * self._cache_dtype.itemsize, cache=2)

    def _score(self, start: ir.Value, stop: ir.Value) -> None:
        """Products of each key with the heads' queries."""
        builder, given = self._builder, self._given
        places = range(0, self._head_size, LANES)

        def query_part(h: int, place: int) -> Vector:
            return load(builder, self._query[h], place, torch.float32, LANES)

        held = {}  # in registers, as far as there are any
        if self._heads * len(places) <= _SUMS:
            held = {
                (h, place): query_part(h, place) for h in range(self._heads) for place in places
            }

        def key(i: ir.Value) -> None:
            row = self._row(given.keys, given.keys_stride, self._key_place, i)
            self._fetch(given.keys, given.keys_stride, self._key_place, self._head_size, i)
            self._fetch(given.values, given.values_stride, self._value_place, self._value_size, i)
            sums = [constant(builder, 0.0, LANES)] * self._heads
            for place in places:
                part = load(builder, row, place, self._cache_dtype, LANES)
                for h in range(self._heads):
                    query = held[h, place] if held else query_part(h, place)
                    sums[h] = multiply_add(part, query, sums[h])
            at = builder.sub(i, start)
            for sum_, scores in zip(sums, self._scores, strict=True):
                save(builder, builder.gep(scores, [at]), 0, total(sum_), torch.float32)

        repeat(builder, start, stop, 1, key)

    def _weigh(self, h: int, highest: ir.Value, sum_: ir.Value) -> list[ir.Value]:
        """A head's scores become weights, relative to the maximum, which may grow."""
        builder = self._builder
        scores = [
            load(builder, self._scores[h], i, torch.float32, LANES) for i in range(0, _KEYS, LANES)
        ]
        highest = Vector(builder, highest)
        greatest = maximum(largest(functools.reduce(maximum, scores)), highest)
        spread = greatest.repeated(LANES)
        weights = [exponential(score - spread) for score in scores]
        for i, weight in enumerate(weights):
            save(builder, self._scores[h], i * LANES, weight, torch.float32)
        shrunk = exponential(highest.repeated(LANES) - spread)
        for i in range(0, self._value_size, LANES):
            before = load(builder, self._sums[h], i, torch.float32, LANES)
            save(builder, self._sums[h], i, before * shrunk, torch.float32)
        added = total(functools.reduce(Vector.__add__, weights))
        return [greatest.value, (Vector(builder, sum_) * shrunk[0] + added).value]

    def _add_values(self, start: ir.Value, stop: ir.Value) -> None:
        """Weighted values, some columns of all heads at a time."""
        builder, given = self._builder, self._given
        columns = range(0, self._value_size, LANES)
        width = max(1, min(len(columns), _SUMS // self._heads))
        for n in range(0, len(columns), width):
            strip = columns[n : n + width]
            before = [
                load(builder, sums, i, torch.float32, LANES).value
                for sums in self._sums
                for i in strip
            ]

            def value(i: ir.Value, sums: list[ir.Value], strip: range = strip) -> list[ir.Value]:
                row = self._row(given.values, given.values_stride, self._value_place, i)
                parts = [load(builder, row, place, self._cache_dtype, LANES) for place in strip]
                at, following = builder.sub(i, start), []
                for h, scores in enumerate(self._scores):
                    weight = load(builder, builder.gep(scores, [at]), 0, torch.float32, 1)
                    weight = weight.repeated(LANES)
                    for k, part in enumerate(parts):
                        before = Vector(builder, sums[h * len(strip) + k])
                        following.append(multiply_add(part, weight, before).value)
                return following

            after = fold(builder, start, stop, 1, before, value)
            for k, sum_ in enumerate(after):
                h, place = k // len(strip), strip[k % len(strip)]
                save(builder, self._sums[h], place, Vector(builder, sum_), torch.float32)

    def _write_out(self, tile: ir.Value, sums: list[ir.Value]) -> None:
        builder = self._builder
        place = builder.mul(tile, I64(self._heads * self._value_size))
        out = pointer(builder, self._given.out, STORED[self._dtype], place)
        for h, sum_ in enumerate(sums):
            share = Vector(builder, builder.fdiv(F32(1.0), sum_)).repeated(LANES)
            for i in range(0, self._value_size, LANES):
                value = load(builder, self._sums[h], i, torch.float32, LANES) * share
                save(builder, out, h * self._value_size + i, value, self._dtype)
