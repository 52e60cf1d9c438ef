"""GEMM: for many vectors rows are decoded once, into the cache, and multiplied from there."""

from __future__ import annotations

import functools

import torch

from ascend_gguf.codegen import (
    F32,
    FLOATS,
    Kernel,
    Rows,
    Value,
    add_pairs,
    fold,
    load,
    loop,
    minimum,
    multiply_add,
    processor,
    rounded,
    shuffle,
    splat,
    store,
    switch,
    when,
)
from ascend_gguf.cpu.launch import AHEAD, Tile, matmul_kernel
from ascend_gguf.decoders.rows import decode_rows
from ascend_gguf.ggml_types import BlockType


def _registers() -> tuple[int, int]:
    """How many float32 a register of this processor holds, and how many registers there are."""
    if processor.host_features().get("avx512f"):
        return 16, 32
    return (4, 32) if processor.IS_ARM else (8, 16)


#: Rows of a register tile.  It has as many columns as fit: totals take most of the registers, and
#: operands the rest.
ROWS = 4

# Bytes between decoded rows, so that weights of a column do not compete for a cache set.
_APART = 64


@functools.cache
def kernel(kind: BlockType, dtype: torch.dtype, out_dtype: torch.dtype) -> Kernel:
    """The kernel for a block type and any number of vectors, compiled on first use.

    Args:
        dtype: of the vectors, and what weights are decoded to: float32, or bfloat16 on a processor
            that multiplies those.
        out_dtype: of the results: float32, bfloat16 or float16.
    """
    name = f"gemm_{kind.name}_{dtype}_{out_dtype}"
    return matmul_kernel(name, dtype, out_dtype, lambda tile: _Columns(kind, tile, dtype).write())


def scratch(cols: int, rows: int, dtype: torch.dtype) -> int:
    """Bytes that a thread needs for a tile: its decoded weights."""
    return -(-rows // ROWS) * ROWS * (cols * dtype.itemsize + _APART)


class _Columns:
    """What is done with a tile."""

    def __init__(self, kind: BlockType, tile: Tile, dtype: torch.dtype) -> None:
        self._kind, self._tile, self._element = kind, tile, FLOATS[dtype]
        self._cols = tile.blocks * kind.block_size
        self._weights = tile.scratch.cast(self._element)
        self._stride = self._cols + _APART // dtype.itemsize
        self._lanes, registers = _registers()
        self._step = self._lanes if self._element is F32 else 2 * self._lanes
        self._most_columns = 6 if registers == 32 else 3

    def write(self) -> None:
        tile = self._tile
        source = Rows(tile.weights + tile.first * tile.row_bytes, tile.row_bytes)
        target = Rows(self._weights, self._stride)
        rows = tile.stop - tile.first
        decode_rows(self._kind, None, source, target, rows, tile.blocks, ahead=AHEAD)
        for first in loop(0, tile.columns, self._most_columns):
            # All rows with as many vectors as totals fit registers, or those that are left.
            count = minimum(tile.columns - first, self._most_columns)
            some = functools.partial(self._some_columns, first)
            switch(count, range(1, self._most_columns + 1), some)

    def _some_columns(self, first: Value, count: int) -> None:
        tile, columns = self._tile, [first + i for i in range(count)]
        vectors = [tile.x + tile.x_stride * i for i in columns]
        results = [tile.out + tile.out_stride * i for i in columns]
        for row in loop(tile.first, tile.stop, ROWS):
            self._some_rows(vectors, results, row)

    def _some_rows(self, vectors: list[Value], results: list[Value], first: Value) -> None:
        """A block of rows and columns; past the tile's last row is stale scratch, not stored."""
        place = (first - self._tile.first) * self._stride
        weights = [self._weights + (place + self._stride * i) for i in range(ROWS)]

        def products(k: Value, totals: list[Value]) -> list[Value]:
            row = [self._load(address, k) for address in weights]
            column = [self._load(address, k) for address in vectors]
            pairs = ((a, b) for b in column for a in row)
            multiply = multiply_add if self._element is F32 else add_pairs
            return [multiply(a, b, total) for (a, b), total in zip(pairs, totals, strict=True)]

        totals = [splat(0.0, self._lanes)] * (ROWS * len(vectors))
        totals = fold(0, self._cols, self._step, totals, products)
        sums = [_sums(totals[i : i + ROWS]) for i in range(0, len(totals), ROWS)]
        out = self._tile.out.kind.element
        assert out is not None
        values = [rounded(sum_, out) for sum_ in sums]
        targets = [result + first for result in results]

        def store_rows(i: int, whole: bool) -> None:
            for target, value in zip(targets, values, strict=True):
                store(target + i, value if whole else value[i])

        def store_some() -> None:
            for i in range(ROWS - 1):
                when(first + i < self._tile.stop, functools.partial(store_rows, i, False))

        when(first + ROWS <= self._tile.stop, functools.partial(store_rows, 0, True), store_some)

    def _load(self, address: Value, k: Value) -> Value:
        """Of bfloat16 the bits."""
        return load(address.cast(self._element.stored) + k, self._step)


def _sums(totals: list[Value]) -> Value:
    """The sums of the lanes of four vectors, as one vector: a row of results is written at once."""
    count = len(totals[0])

    def added(a: Value, b: Value, low: list[int], high: list[int]) -> Value:
        """Of each four lanes of two vectors those named, 4 to 7 being the second's, added up."""
        first, second = (
            shuffle(
                a,
                b,
                [
                    block + lane % 4 + count * (lane // 4)
                    for block in range(0, count, 4)
                    for lane in lanes
                ],
            )
            for lanes in (low, high)
        )
        return first + second

    first, second = (added(a, b, [0, 4, 1, 5], [2, 6, 3, 7]) for a, b in (totals[:2], totals[2:]))
    value = added(first, second, [0, 1, 4, 5], [2, 3, 6, 7])
    while len(value) > ROWS:
        half = len(value) // 2
        value = value[:half] + value[half:]
    return value
