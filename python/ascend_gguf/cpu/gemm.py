"""Kernels for many vectors: rows are decoded once, into the cache, and multiplied from there."""

from __future__ import annotations

import functools
import platform

import torch
from llvmlite import ir

from ascend_gguf.codegen.compile import compiled_kernel
from ascend_gguf.codegen.control import fold, minimum, repeat
from ascend_gguf.codegen.vectors import F32, I32, I64, STORED, Vector, host_features, store, stored
from ascend_gguf.cpu.dot import multiply_add, multiply_add_pairs
from ascend_gguf.cpu.launch import AHEAD, Kernel, Tile, each_tile
from ascend_gguf.decoders.rows import decode_rows
from ascend_gguf.ggml_types import BlockType


def _registers() -> tuple[int, int]:
    """How many float32 a register of this processor holds, and how many registers there are."""
    if host_features().get("avx512f"):
        return 16, 32
    return (4, 32) if platform.machine() in ("aarch64", "arm64") else (8, 16)


#: Rows multiplied together, with as many columns as their totals fit registers: most of all that
#: there are, as some hold what is being multiplied.
ROWS = 4

# Bytes between decoded rows, so that numbers of the same columns do not share places of the cache.
_APART = 64


@functools.cache
def kernel(kind: BlockType, dtype: torch.dtype, out_dtype: torch.dtype) -> Kernel:
    """The kernel for a block type and any number of vectors, compiled on first use.

    Args:
        dtype: of the vectors, and what weights are decoded to: float32, or bfloat16 on a processor
            that multiplies those.
        out_dtype: of the results: float32, bfloat16 or float16.
    """
    module = ir.Module()
    with each_tile(module) as (builder, tile):
        _Columns(builder, tile, kind, dtype, out_dtype).write()
    return compiled_kernel(module)


def scratch(cols: int, rows: int, dtype: torch.dtype) -> int:
    """Bytes that a thread needs for a tile: its decoded weights."""
    return -(-rows // ROWS) * ROWS * (cols * dtype.itemsize + _APART)


class _Columns:
    """Writes what is done with a tile."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        tile: Tile,
        kind: BlockType,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
    ) -> None:
        self._builder = builder
        self._tile = tile
        self._kind = kind
        self._dtype = dtype
        self._out_dtype = out_dtype
        self._cols = builder.mul(tile.blocks, I64(kind.block_size))
        self._weights = builder.bitcast(tile.scratch, STORED[dtype].as_pointer())
        self._stride = builder.add(self._cols, I64(_APART // dtype.itemsize))
        lanes, registers = _registers()
        self._total = ir.VectorType(F32, lanes)
        self._zero = ir.Constant(self._total, [ir.Constant(F32, 0.0)] * lanes)
        self._step = 2 * lanes if dtype == torch.bfloat16 else lanes
        self._most_columns = 6 if registers == 32 else 3

    def write(self) -> None:
        builder, tile = self._builder, self._tile
        source = builder.gep(tile.weights, [builder.mul(tile.first, tile.row_bytes)])
        decode_rows(
            builder,
            self._kind,
            self._dtype,
            source,
            tile.row_bytes,
            self._weights,
            self._stride,
            builder.sub(tile.stop, tile.first),
            tile.blocks,
            ahead=AHEAD,
        )
        repeat(builder, I64(0), tile.columns, self._most_columns, self._some_columns)

    def _some_columns(self, first: ir.Value) -> None:
        """All rows with as many vectors as totals fit registers, or those that are left."""
        builder, tile = self._builder, self._tile
        after = builder.append_basic_block()
        count = minimum(builder, builder.sub(tile.columns, first), I64(self._most_columns))
        choice = builder.switch(count, after)
        for columns in range(1, self._most_columns + 1):
            choice.add_case(I64(columns), builder.append_basic_block())
            builder.position_at_end(choice.cases[-1][1])
            vectors = self._spaced(tile.x, self._dtype, tile.x_stride, first, columns)
            results = self._spaced(tile.out, self._out_dtype, tile.out_stride, first, columns)
            repeat(
                builder,
                tile.first,
                tile.stop,
                ROWS,
                functools.partial(self._some_rows, vectors, results),
            )
            builder.branch(after)
        builder.position_at_end(after)

    def _spaced(
        self, start: ir.Value, dtype: torch.dtype, stride: ir.Value, first: ir.Value, count: int
    ) -> list[ir.Value]:
        """The addresses of some vectors."""
        builder = self._builder
        start = builder.bitcast(start, STORED[dtype].as_pointer())
        indices = [builder.add(first, I64(i)) for i in range(count)]
        return [builder.gep(start, [builder.mul(stride, i)]) for i in indices]

    def _some_rows(self, vectors: list[ir.Value], results: list[ir.Value], first: ir.Value) -> None:
        """A block of rows and columns; past the tile's last row is stale scratch, not stored."""
        builder = self._builder
        place = builder.mul(builder.sub(first, self._tile.first), self._stride)
        indices = [builder.add(place, builder.mul(self._stride, I64(i))) for i in range(ROWS)]
        weights = [builder.gep(self._weights, [i]) for i in indices]

        def products(k: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            row = [self._load(address, k) for address in weights]
            column = [self._load(address, k) for address in vectors]
            pairs = ((a, b) for b in column for a in row)
            return [
                self._multiply(a, b, total) for (a, b), total in zip(pairs, totals, strict=True)
            ]

        totals = [self._zero] * (ROWS * len(vectors))
        totals = fold(builder, I64(0), self._cols, self._step, totals, products)
        values = [
            stored(_sums(builder, totals[i : i + ROWS]), self._out_dtype, usual=False)
            for i in range(0, len(totals), ROWS)
        ]
        targets = [builder.gep(result, [first]) for result in results]
        stop = builder.add(first, I64(ROWS))
        with builder.if_else(builder.icmp_signed("<=", stop, self._tile.stop)) as (all_, some):
            with all_:
                for target, value in zip(targets, values, strict=True):
                    store(builder, target, 0, value)
            with some:
                for i in range(ROWS - 1):
                    is_row = builder.icmp_signed("<", builder.add(first, I64(i)), self._tile.stop)
                    with builder.if_then(is_row):
                        for target, value in zip(targets, values, strict=True):
                            store(builder, target, i, value[i])

    def _load(self, address: ir.Value, k: ir.Value) -> ir.Value:
        kind = ir.VectorType(STORED[self._dtype], self._step)
        address = self._builder.gep(address, [k])
        address = self._builder.bitcast(address, kind.as_pointer())
        return self._builder.load(address, align=self._dtype.itemsize)

    def _multiply(self, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
        if self._dtype == torch.float32:
            return multiply_add(self._builder, a, b, total)
        return multiply_add_pairs(self._builder, a, b, total)


def _sums(builder: ir.IRBuilder, totals: list[ir.Value]) -> Vector:
    """The sums of the lanes of four vectors, as one vector: a row of results is written at once."""
    count = totals[0].type.count

    def added(a: ir.Value, b: ir.Value, low: list[int], high: list[int]) -> ir.Value:
        """Of each four lanes of two vectors those named, 4 to 7 being the second's, added up."""
        halves = []
        for lanes in (low, high):
            places = [
                block + lane % 4 + count * (lane // 4)
                for block in range(0, count, 4)
                for lane in lanes
            ]
            mask = ir.Constant(ir.VectorType(I32, count), [I32(place) for place in places])
            halves.append(builder.shuffle_vector(a, b, mask))
        return builder.fadd(*halves)

    first, second = (added(a, b, [0, 4, 1, 5], [2, 6, 3, 7]) for a, b in (totals[:2], totals[2:]))
    value = Vector(builder, added(first, second, [0, 1, 4, 5], [2, 3, 6, 7]))
    while len(value) > ROWS:
        half = len(value) // 2
        value = value[:half] + value[half:]
    return value
