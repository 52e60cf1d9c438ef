"""Attention of tokens to their requests' keys and values in a cache of slots, on the CPU."""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
import torch

from ascend_gguf.codegen import (
    F32,
    LANES,
    Kernel,
    Value,
    exp,
    fold,
    load,
    local,
    loop,
    max_of,
    maximum,
    minimum,
    multiply_add,
    prefetch,
    splat,
    store,
    sum_of,
)
from ascend_gguf.cpu import prefill_attention

# Keys whose scores are computed before their values are looked at; a multiple of LANES.
_KEYS = 64
# Query heads that a thread takes at a time, and the vectors of sums it can hold besides.
_HEADS, _SUMS = 8, 16
# How many keys before it is needed a row is prefetched, to the second-level cache: slots are evenly
# far apart, so that few rows have places in the first.
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
        one_each: no request has several tokens; then Python does not look at any value.
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
    is_wide = slots.dtype == torch.int64
    window = 1 << 40 if window is None else window
    given = query, keys, values, slots, tokens.requests, tokens.lengths, out
    if prefill_attention.takes(query, keys):
        together = _most_dividing(group, prefill_attention.ROWS)
        found = tokens.blocks(window, prefill_attention.tokens_together(together))
        if found is not None:
            kernel = prefill_attention.kernel(is_wide, together, head_size, value_size)
            shape = (heads // together, group // together, scale, window)
            kernel.run(len(found) * shape[0], *given, *shape, found.ctypes.data)
            return out
    together = _most_dividing(group, _HEADS)
    kernel = _attend(query.dtype, keys.dtype, is_wide, together, head_size, value_size)
    shape = (heads // together, group // together, scale, window)
    kernel.run(count * shape[0], *given, *shape)
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
) -> Kernel:
    """A tile is a token with as many query heads, that share a key head."""

    def attend(tile: Value, **given: Any) -> None:
        _Tile(tile, (heads, head_size, value_size), given).write()

    name = f"attend_{dtype}_{cache_dtype}_{heads}_{head_size}_{value_size}"
    return Kernel(name, attend, **prefill_attention.parameters(dtype, cache_dtype, wide_slots))


class _Tile(prefill_attention.CacheTile):
    """What is done with a tile: softmax as it goes, rescaled when the maximum grows."""

    def __init__(self, tile: Value, sizes: tuple[int, int, int], given: dict[str, Any]) -> None:
        super().__init__(tile, tile // given["tiles_per_token"], sizes, given)
        heads, head_size, value_size = sizes
        scratch = local(F32, heads * (head_size + value_size + _KEYS))
        widths = (head_size, value_size, _KEYS)
        places = [sum(widths[:i]) * heads for i in range(3)]
        self._query, self._sums, self._scores = (
            [scratch + (place + h * size) for h in range(heads)]
            for place, size in zip(places, widths, strict=True)
        )
        self._length = load(given["lengths"] + self._token)
        self._last = self._length - 1

    def write(self) -> None:
        self._read_query()
        first = self._length - 1 - self._given["window"]
        first = (first > 0).select(first, 0)
        state = [splat(_NOTHING), splat(0.0)] * self._heads
        state = fold(first, self._length, _KEYS, state, self._chunk)
        out = self._given["out"][self._token] + self._part * (self._heads * self._value_size)
        for h, sum_ in enumerate(state[1::2]):
            share = (1.0 / sum_).splat(LANES)
            for i in range(0, self._value_size, LANES):
                value = load(self._sums[h] + i, LANES) * share
                store(out + (h * self._value_size + i), value)

    def _read_query(self) -> None:
        """To scratch, times the scale; and sums of nothing."""
        source = self._given["query"][self._token] + self._part * (self._heads * self._head_size)
        for h in range(self._heads):
            for i in range(0, self._head_size, LANES):
                part = load(source + (h * self._head_size + i), LANES)
                store(self._query[h] + i, part * self._given["scale"])
            for i in range(0, self._value_size, LANES):
                store(self._sums[h] + i, splat(0.0, LANES))

    def _chunk(self, start: Value, state: list[Value]) -> list[Value]:
        """Some keys: each head's maximum and sum of weights."""
        stop = minimum(start + _KEYS, self._length)
        for scores in self._scores:
            for i in range(0, _KEYS, LANES):
                store(scores + i, splat(_NOTHING, LANES))
        self._score(start, stop)
        following = []
        for h in range(self._heads):
            following += self._weigh(h, *state[2 * h : 2 * h + 2])
        self._add_values(start, stop)
        return following

    def _score(self, start: Value, stop: Value) -> None:
        """Dot products of each key with the heads' queries."""
        places = range(0, self._head_size, LANES)
        held = {}  # in registers, as far as there are any
        if self._heads * len(places) <= _SUMS:
            held = {
                (h, place): load(query + place, LANES)
                for h, query in enumerate(self._query)
                for place in places
            }
        for i in loop(start, stop):
            row, ahead = self._row("keys", i), minimum(i + _AHEAD, self._last)
            for name, size in (("keys", self._head_size), ("values", self._value_size)):
                # Rows may lie anywhere.
                later = self._row(name, ahead)
                assert later.kind.element is not None
                prefetch(later, size * later.kind.element.nbytes, level=2)
            sums = [splat(0.0, LANES)] * self._heads
            for place in places:
                part = load(row + place, LANES)
                for h in range(self._heads):
                    query = held[h, place] if held else load(self._query[h] + place, LANES)
                    sums[h] = multiply_add(part, query, sums[h])
            for sum_, scores in zip(sums, self._scores, strict=True):
                store(scores + (i - start), sum_of(sum_))

    def _weigh(self, h: int, highest: Value, sum_: Value) -> list[Value]:
        """A head's scores become weights, relative to the maximum, which may grow."""
        scores = [load(self._scores[h] + i, LANES) for i in range(0, _KEYS, LANES)]
        greatest = maximum(max_of(functools.reduce(maximum, scores)), highest)
        spread = greatest.splat(LANES)
        weights = [exp(score - spread) for score in scores]
        for i, weight in enumerate(weights):
            store(self._scores[h] + i * LANES, weight)
        shrunk = exp(highest.splat(LANES) - spread)
        for i in range(0, self._value_size, LANES):
            store(self._sums[h] + i, load(self._sums[h] + i, LANES) * shrunk)
        added = sum_of(functools.reduce(operator.add, weights))
        return [greatest, sum_ * shrunk[0] + added]

    def _add_values(self, start: Value, stop: Value) -> None:
        """Weighted values, some columns of all heads at a time."""
        columns = range(0, self._value_size, LANES)
        width = max(1, min(len(columns), _SUMS // self._heads))
        for n in range(0, len(columns), width):
            strip = columns[n : n + width]
            places = [sums + i for sums in self._sums for i in strip]

            def value(i: Value, sums: list[Value], strip: range = strip) -> list[Value]:
                row, following = self._row("values", i), []
                parts = [load(row + place, LANES) for place in strip]
                for h, scores in enumerate(self._scores):
                    weight = load(scores + (i - start)).splat(LANES)
                    befores = sums[h * len(strip) : (h + 1) * len(strip)]
                    pairs = zip(parts, befores, strict=True)
                    following += [multiply_add(part, weight, before) for part, before in pairs]
                return following

            after = fold(start, stop, 1, [load(place, LANES) for place in places], value)
            for place, sum_ in zip(places, after, strict=True):
                store(place, sum_)
