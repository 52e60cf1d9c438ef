"""Attention of neighbouring tokens to the same keys, as products of matrices, in bfloat16.

What :mod:`.paged_attention` does for each token is done here for a block of them: keys and values
are read once for all, laid out for the instruction that adds up products of pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ascend_gguf.codegen import (
    BF16,
    F32,
    I16,
    I32,
    I64,
    LANES,
    Kernel,
    Kind,
    Value,
    add_pairs,
    exp2,
    fold,
    load,
    local,
    loop,
    max_of,
    maximum,
    minimum,
    pointer,
    prefetch,
    processor,
    rounded,
    rows,
    shuffle,
    splat,
    store,
    sum_of,
    switch,
    transposed,
    when,
    widened,
)

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
    return processor.BFLOAT_INSTRUCTIONS and is_bfloat and query.shape[-1] % _PAIRS == 0


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


def parameters(dtype: torch.dtype, cache_dtype: torch.dtype, wide_slots: bool) -> dict[str, Kind]:
    """Of kernels of attention to a KV cache of slots.

    Args:
        wide_slots: slots are of 64 bits, not of 32.
    """
    return {
        "query": rows(dtype),
        "keys": rows(cache_dtype),
        "values": rows(cache_dtype),
        "slots": rows(I64 if wide_slots else I32),
        "requests": pointer(I64),
        "lengths": pointer(I64),
        "out": rows(dtype),
        "tiles_per_token": I64,
        "tiles_per_kv_head": I64,
        "scale": F32,
        "window": I64,
    }


@functools.cache
def kernel(wide_slots: bool, heads: int, head_size: int, value_size: int) -> Kernel:
    """A tile is a block of tokens with as many query heads, that share a key head.

    Its arguments are :func:`parameters` and then :func:`blocks`.
    """

    def attend(tile: Value, **given: Any) -> None:
        _Block(tile, (heads, head_size, value_size), given).write()

    given = parameters(torch.bfloat16, torch.bfloat16, wide_slots)
    name = f"prefill_{heads}_{head_size}_{value_size}"
    return Kernel(name, attend, **given, blocks=pointer(I64))


def tokens_together(heads: int) -> int:
    """The most tokens of a block, if as many query heads are taken with each."""
    return max(1, ROWS // heads)


class CacheTile:
    """A tile of attention to a KV cache: some query heads, and rows of the key head they share.

    Args:
        token: whose request it is.
        sizes: query heads, their size, and that of values.
        given: what the kernel is given, by name: see :func:`parameters`.
    """

    def __init__(
        self, tile: Value, token: Value, sizes: tuple[int, int, int], given: dict[str, Any]
    ) -> None:
        self._given, self._token = given, token
        self._heads, self._head_size, self._value_size = sizes
        self._part = tile % given["tiles_per_token"]
        self._kv_head = self._part // given["tiles_per_kv_head"]
        self._slots = given["slots"][load(given["requests"] + token)]

    def _row(self, name: str, i: Value) -> Value:
        """Of ``keys`` or ``values`` in the KV cache, that of a token of the request."""
        size = self._head_size if name == "keys" else self._value_size
        return self._given[name][load(self._slots + i).zext(I64)] + self._kv_head * size


class _Block(CacheTile):
    """What is done with a tile: softmax as it goes, rescaled when the maximum grows."""

    def __init__(self, tile: Value, sizes: tuple[int, int, int], given: dict[str, Any]) -> None:
        block = given["blocks"] + tile // given["tiles_per_token"] * 4
        token, self._tokens, self._first, self._stop = (load(block + i) for i in range(4))
        super().__init__(tile, token, sizes, given)
        heads, head_size, value_size = sizes
        self._rows = self._tokens * heads
        rows = -(-tokens_together(heads) * heads // _ROWS) * _ROWS
        self._queries = local(BF16, rows * head_size)
        self._key_pairs = local(I32, _KEYS // 2 * head_size)
        self._value_pairs = local(I16, _KEYS * value_size)
        self._scores = local(F32, rows * _KEYS)
        self._weights = local(BF16, rows * _KEYS)
        self._sums = local(F32, rows * value_size)
        self._highest = local(F32, rows)
        self._totals = local(F32, rows * LANES)

    def write(self) -> None:
        self._start_rows()
        for start in loop(self._first, self._stop, _KEYS):
            self._chunk(start)
        for i in loop(0, self._tokens):
            self._write_out(i)

    def _start_rows(self) -> None:
        """Queries to where they are neighbours; sums of nothing."""
        size = self._heads * self._head_size
        for i in loop(0, self._tokens):
            source = self._given["query"][self._token + i] + self._part * size
            target = self._queries + i * size
            for k in range(0, size, _PAIRS):
                store(target + k, load(source.cast(I16) + k, _PAIRS))
        for i in loop(0, self._rows):
            for sums, count in ((self._sums, self._value_size), (self._totals, LANES)):
                for k in range(0, count, LANES):
                    store(sums + i * count + k, splat(0.0, LANES))
            store(self._highest + i, splat(_NOTHING))

    def _chunk(self, start: Value) -> None:
        """All rows with some keys."""
        count = minimum(self._stop - start, _KEYS)
        vectors, pairs = (count + (LANES - 1)) // LANES, (count + 1) // 2
        for vector in loop(0, vectors):
            self._lay_out_keys(start, vector)
        for pair in loop(0, pairs):
            self._lay_out_values(start, pair)

        def score(width: int) -> None:
            for row in loop(0, self._rows, _ROWS):
                self._score(width, row)

        switch(vectors, range(1, _VECTORS + 1), score)
        for row in loop(0, self._rows):
            self._weigh(start, row)
        for row in loop(0, self._rows, _ROWS):
            self._add_values(pairs, row)

    def _cached(self, name: str, key: Value) -> Value:
        """The row of the KV cache that a key, or the last there is, has."""
        return self._row(name, minimum(key, self._stop - 1))

    def _rows_of_cache(self, name: str, size: int, first: Value, count: int) -> list[Value]:
        """The rows of ``keys`` or ``values`` of some keys; the next chunk's are prefetched."""
        keys = [first + i for i in range(count)]
        for key in keys:
            prefetch(self._cached(name, key + _KEYS), 2 * size, level=2)
        return [self._cached(name, key) for key in keys]

    def _lay_out_keys(self, start: Value, vector: Value) -> None:
        """Sixteen keys: pairs of elements at the same places of each become neighbours."""
        rows = self._rows_of_cache("keys", self._head_size, start + vector * LANES, LANES)
        for k in range(0, self._head_size, _PAIRS):
            pairs = [load(row + k, LANES, I32) for row in rows]
            for i, column in enumerate(transposed(pairs)):
                place = (vector + (k // 2 + i) * _VECTORS) * LANES
                store(self._key_pairs + place, column)

    def _lay_out_values(self, start: Value, pair: Value) -> None:
        """Two values: elements at the same place become neighbours."""
        rows = self._rows_of_cache("values", self._value_size, start + pair * 2, 2)
        target = self._value_pairs + pair * (2 * self._value_size)
        for k in range(0, self._value_size, LANES):
            a, b = (load(row + k, LANES, I16) for row in rows)
            places = [lane + LANES * side for lane in range(LANES) for side in range(2)]
            store(target + 2 * k, shuffle(a, b, places))

    def _products(
        self,
        rows: list[Value],
        source: Callable[[Value, int], Value],
        count: Value | int,
        totals: list[Value],
    ) -> list[Value]:
        """Add to totals, of each row all of its vectors', products of pairs.

        Args:
            rows: addresses of pairs of bfloat16, each for all lanes of vectors to meet.
            source: the address of a vector, from the number of the pair and of the vector.
        """
        width = len(totals) // len(rows)

        def pair(i: Value, totals: list[Value]) -> list[Value]:
            vectors = [load(source(i, n), LANES) for n in range(width)]
            following = []
            for r, row in enumerate(rows):
                both = load(row + i).splat(LANES)
                for vector, before in zip(vectors, totals[r * width :], strict=False):
                    following.append(add_pairs(vector, both, before))
            return following

        return fold(0, count, 1, totals, pair)

    def _score(self, width: int, row: Value) -> None:
        """Dot products of some rows with all keys there are."""
        size = self._head_size // 2
        indices = [row + r for r in range(_ROWS)]
        queries = [self._queries.cast(I32) + i * size for i in indices]

        def keys(pair: Value, vector: int) -> Value:
            return self._key_pairs + pair * _KEYS + vector * LANES

        totals = self._products(queries, keys, size, [splat(0.0, LANES)] * (_ROWS * width))
        for r, i in enumerate(indices):
            for n, sum_ in enumerate(totals[r * width : (r + 1) * width]):
                store(self._scores + i * _KEYS + n * LANES, sum_)

    def _weigh(self, start: Value, row: Value) -> None:
        """A row's scores become weights, relative to the maximum, which may grow."""
        source, highest_place = self._scores + row * _KEYS, self._highest + row
        self._hide_unseen(start, row, source)
        scores = [load(source + n, LANES) for n in range(0, _KEYS, LANES)]
        highest = load(highest_place)
        greatest = maximum(max_of(functools.reduce(maximum, scores)), highest)
        scale = self._given["scale"] * _LOG2_E

        def grow() -> None:
            store(highest_place, greatest)
            self._shrink(row, exp2((highest - greatest) * scale))

        when(greatest.differs(highest), grow)
        spread, scale = greatest.splat(LANES), scale.splat(LANES)
        target, totals = self._weights + row * _KEYS, self._totals + row * LANES
        added = load(totals, LANES)
        for n, score in enumerate(scores):
            # The sum is of what is multiplied with, so that weights are 1 together.
            bits = rounded(exp2((score - spread) * scale), BF16, normal=True)
            store(target + n * LANES, bits)
            added = added + widened(bits, BF16)
        store(totals, added)

    def _hide_unseen(self, start: Value, row: Value, scores: Value) -> None:
        """Scores of keys that a row does not attend to, if there are any, become nothing."""
        length = load(self._given["lengths"] + (self._token + row // self._heads))
        last = length - 1 - start
        first = last - self._given["window"]

        def hide() -> None:
            low, high = first.splat(LANES), last.splat(LANES)
            for n in range(0, _KEYS, LANES):
                lanes = low.like([n + i for i in range(LANES)])
                is_seen = (lanes >= low) & (lanes <= high)
                store(scores + n, is_seen.select(load(scores + n, LANES), _NOTHING))

        when((first > 0) | (last < _KEYS - 1), hide)

    def _shrink(self, row: Value, share: Value) -> None:
        """What a row has summed up, as the maximum has grown."""
        for sums, size in ((self._sums, self._value_size), (self._totals, LANES)):
            for k in range(0, size, LANES):
                place = sums + row * size + k
                store(place, load(place, LANES) * share.splat(LANES))

    def _add_values(self, pairs: Value, row: Value) -> None:
        """Weighted values of some rows, some columns at a time."""
        indices = [row + r for r in range(_ROWS)]
        weights = [self._weights.cast(I32) + i * (_KEYS // 2) for i in indices]
        columns = range(0, self._value_size, LANES)
        for n in range(0, len(columns), _VECTORS):
            strip = columns[n : n + _VECTORS]

            def values(pair: Value, vector: int, strip: range = strip) -> Value:
                place = self._value_pairs.cast(I32) + pair * self._value_size
                return place + strip[vector]

            places = [self._sums + i * self._value_size + k for i in indices for k in strip]
            before = [load(place, LANES) for place in places]
            after = self._products(weights, values, pairs, before)
            for place, sum_ in zip(places, after, strict=True):
                store(place, sum_)

    def _write_out(self, i: Value) -> None:
        heads = self._given["out"][self._token + i] + self._part * (self._heads * self._value_size)
        for h in range(self._heads):
            row = i * self._heads + h
            share = 1.0 / sum_of(load(self._totals + row * LANES, LANES))
            out = heads + h * self._value_size
            for k in range(0, self._value_size, LANES):
                value = load(self._sums + row * self._value_size + k, LANES)
                store(out + k, value * share)
