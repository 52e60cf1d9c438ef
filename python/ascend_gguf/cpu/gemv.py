"""GEMV: for few vectors rows of blocks are decoded in registers, multiplied and forgotten."""

from __future__ import annotations

import functools
import operator

import torch

import ascend_gguf.codegen.processor as processor
from ascend_gguf.codegen import (
    F32,
    LANES,
    Kernel,
    Value,
    fold,
    load,
    loop,
    prefetch,
    splat,
    store,
    sum_of,
)
from ascend_gguf.codegen.compile import traced
from ascend_gguf.cpu.dot import DotSink
from ascend_gguf.cpu.launch import AHEAD, Tile, matmul_kernel
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.rows import decoder_of
from ascend_gguf.ggml_types import BlockType

# Weights of unquantized types multiplied at once; a power of two.
_AT_ONCE = 4 * LANES
# Totals of a vector, so that an addition need not wait for the last.  On ARM sixteen lanes are four
# registers that do not wait for each other.
_TOTALS = 1 if processor.IS_ARM else 2


@functools.cache
def kernel(kind: BlockType, dtype: torch.dtype, out_dtype: torch.dtype, columns: int) -> Kernel:
    """The kernel for a block type and a number of vectors, compiled on first use.

    Args:
        dtype: of the vectors, as :class:`~.dot.DotSink` takes them.
        out_dtype: of the results: float32, bfloat16 or float16.
    """
    name = f"gemv_{kind.name}_{dtype}_{out_dtype}_{columns}"
    return matmul_kernel(name, dtype, out_dtype, lambda tile: _Rows(kind, tile, columns).write())


@functools.cache
def dot_of(kind: BlockType) -> DotSink:
    """What the decoder of a type gives for no vector: all there is to know about its products."""
    sinks = []

    def block(address: Value) -> None:
        sinks.append(DotSink([], [], [], 1))
        decoder_of(kind)(Block(address), sinks[0])
        sinks[0].finish()

    traced("block", block)
    return sinks[0]


def scratch(kind: BlockType, cols: int, columns: int) -> int:
    """Bytes that a thread needs: for the sum of the elements that meet each offset."""
    group = dot_of(kind).offset_group
    return F32.nbytes * columns * cols // group if group else 0


class _Rows:
    """What is done with a tile."""

    def __init__(self, kind: BlockType, tile: Tile, columns: int) -> None:
        self._kind, self._tile = kind, tile
        self._group = dot_of(kind).offset_group
        self._vectors = [tile.x + tile.x_stride * i for i in range(columns)]
        self._results = [tile.out + tile.out_stride * i for i in range(columns)]
        self._sums: list[Value] = []

    def write(self) -> None:
        if self._group:
            self._sum_groups(self._group)
        for row in loop(self._tile.first, self._tile.stop):
            self._row(row)

    def _sum_groups(self, group: int) -> None:
        """The sum of each group of elements that meets one offset, for all rows of the tile."""
        count = self._tile.blocks * (self._kind.block_size // group)
        scratch = self._tile.scratch.cast(F32)
        self._sums = [scratch + count * i for i in range(len(self._vectors))]
        for i in loop(0, count):
            for x, sums in zip(self._vectors, self._sums, strict=True):
                elements, total = load(x + i * group, group), splat(0.0, LANES)
                for start in range(0, group, LANES):
                    total = total + elements[start : start + LANES]
                store(sums + i, sum_of(total))

    def _row(self, row: Value) -> None:
        tile, columns = self._tile, len(self._vectors)
        source = tile.weights + row * tile.row_bytes
        totals, done = [splat(0.0, LANES)] * (_TOTALS * columns), splat(0, 1, tile.blocks.kind)
        if self._kind.block_size == 1:
            done = tile.blocks & -_AT_ONCE
            totals = self._blocks(source, 0, done, _AT_ONCE, totals)
        totals = self._blocks(source, done, tile.blocks, 1, totals)
        for i, results in enumerate(self._results):
            store(results + row, sum_of(functools.reduce(operator.add, totals[i::columns])))

    def _blocks(
        self, source: Value, start: Value | int, stop: Value, step: int, totals: list[Value]
    ) -> list[Value]:
        """Add the products of some of a row's blocks, ``step`` at once, to totals."""
        kind, group = self._kind, self._group

        def block(i: Value, totals: list[Value]) -> list[Value]:
            place = i * kind.block_size
            vectors, sums = [x + place for x in self._vectors], []
            if group:
                place = i * (kind.block_size // group)
                sums = [s + place for s in self._sums]
            products = DotSink(vectors, sums, totals, step)
            first = source + i * kind.type_size
            prefetch(first + AHEAD, kind.type_size * step)
            decoder_of(kind)(Block(first), products)
            products.finish()
            return products.totals

        return fold(start, stop, step, totals, block)
