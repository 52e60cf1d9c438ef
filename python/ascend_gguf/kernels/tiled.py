"""Kernels for many vectors: rows are decoded once, into the cache, and multiplied from there."""

from __future__ import annotations

import functools
import platform

import torch
from llvmlite import ir

from ascend_gguf.decoders.kernel import decode_rows
from ascend_gguf.decoders.vectors import (
    BFLOAT,
    F32,
    I64,
    STORED,
    Vector,
    host_features,
    intrinsic,
    stored,
)
from ascend_gguf.ggml_types import BlockType
from ascend_gguf.kernels.control import fold, minimum, repeat
from ascend_gguf.kernels.job import Kernel, Tile, compiled_kernel, each_tile
from ascend_gguf.kernels.products import multiply_add, sum_of


def _registers() -> tuple[int, int]:
    """How many float32 a register of this processor holds, and how many registers there are."""
    if host_features().get("avx512f"):
        return 16, 32
    return (4, 32) if platform.machine() in ("aarch64", "arm64") else (8, 16)


#: Rows multiplied together, with as many columns as their totals fit registers: most of all that
#: there are, as some hold what is being multiplied.
ROWS = 4


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
    return -(-rows // ROWS) * ROWS * cols * dtype.itemsize


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
            self._cols,
            builder.sub(tile.stop, tile.first),
            tile.blocks,
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
        place = builder.mul(builder.sub(first, self._tile.first), self._cols)
        indices = [builder.add(place, builder.mul(self._cols, I64(i))) for i in range(ROWS)]
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
        for i in range(ROWS):
            row = builder.add(first, I64(i))
            with builder.if_then(builder.icmp_signed("<", row, self._tile.stop)):
                for result, total in zip(results, totals[i::ROWS], strict=True):
                    value = Vector(builder, sum_of(builder, total))
                    bits = stored(value, self._out_dtype, usual=False)
                    builder.store(bits.value, builder.gep(result, [row]))

    def _load(self, address: ir.Value, k: ir.Value) -> ir.Value:
        element = BFLOAT if self._dtype == torch.bfloat16 else F32
        kind = ir.VectorType(element, self._step)
        address = self._builder.gep(address, [k])
        address = self._builder.bitcast(address, kind.as_pointer())
        return self._builder.load(address, align=self._dtype.itemsize)

    def _multiply(self, a: ir.Value, b: ir.Value, total: ir.Value) -> ir.Value:
        if self._dtype == torch.float32:
            return multiply_add(self._builder, a, b, total)
        return intrinsic(
            self._builder, "llvm.x86.avx512bf16.dpbf16ps.512", self._total, total, a, b
        )
