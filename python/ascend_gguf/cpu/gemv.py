"""Kernels for few vectors: rows of blocks are decoded in registers, multiplied and forgotten."""

from __future__ import annotations

import functools

import torch
from llvmlite import ir

from ascend_gguf.codegen.compile import compiled_kernel
from ascend_gguf.codegen.control import fold, repeat
from ascend_gguf.codegen.vectors import F32, I8, I64, LANES, STORED, Bytes, Vector, fetch, stored
from ascend_gguf.cpu.dot import ZERO, Products, loaded, sum_of
from ascend_gguf.cpu.launch import AHEAD, Kernel, Tile, each_tile
from ascend_gguf.decoders.rows import decoder_of
from ascend_gguf.ggml_types import BlockType

# Plain numbers multiplied at once; a power of two.
_AT_ONCE = 4 * LANES
# Totals of a vector, so that an addition need not wait for the last.
_TOTALS = 2


@functools.cache
def kernel(kind: BlockType, dtype: torch.dtype, out_dtype: torch.dtype, columns: int) -> Kernel:
    """The kernel for a block type and a number of vectors, compiled on first use.

    Args:
        dtype: of the vectors, as :class:`~.products.Products` takes them.
        out_dtype: of the results: float32, bfloat16 or float16.
    """
    module = ir.Module()
    with each_tile(module) as (builder, tile):
        _Rows(builder, tile, kind, dtype, out_dtype, columns).write()
    return compiled_kernel(module)


@functools.cache
def products_of(kind: BlockType) -> Products:
    """What the decoder of a type makes of no vector: all there is to know about its products."""
    signature = ir.FunctionType(ir.VoidType(), [I8.as_pointer()])
    function = ir.Function(ir.Module(), signature, "block")
    builder = ir.IRBuilder(function.append_basic_block())
    products = Products(builder, [], torch.float32, [], [], 1)
    decoder_of(kind)(Bytes(builder, function.args[0]), products)
    products.finish()
    return products


def scratch(kind: BlockType, cols: int, columns: int) -> int:
    """Bytes that a thread needs: for the sum of the numbers that meet each offset."""
    group = products_of(kind).offset_group
    return F32_BYTES * columns * cols // group if group else 0


F32_BYTES = 4


class _Rows:
    """Writes what is done with a tile."""

    def __init__(
        self,
        builder: ir.IRBuilder,
        tile: Tile,
        kind: BlockType,
        dtype: torch.dtype,
        out_dtype: torch.dtype,
        columns: int,
    ) -> None:
        self._builder = builder
        self._tile = tile
        self._kind = kind
        self._dtype = dtype
        self._out_dtype = out_dtype
        self._vectors = self._spaced(tile.x, STORED[dtype], tile.x_stride, columns)
        self._results = self._spaced(tile.out, STORED[out_dtype], tile.out_stride, columns)
        self._sums: list[ir.Value] = []

    def _spaced(
        self, start: ir.Value, element: ir.Type, stride: ir.Value, count: int
    ) -> list[ir.Value]:
        """Addresses that are so many elements apart."""
        builder = self._builder
        start = builder.bitcast(start, element.as_pointer())
        return [builder.gep(start, [builder.mul(stride, I64(i))]) for i in range(count)]

    def write(self) -> None:
        if group := products_of(self._kind).offset_group:
            self._sum_groups(group)
        repeat(self._builder, self._tile.first, self._tile.stop, 1, self._row)

    def _sum_groups(self, group: int) -> None:
        """The sum of each group of numbers that meets one offset, for all rows of the tile."""
        builder = self._builder
        count = builder.mul(self._tile.blocks, I64(self._kind.block_size // group))
        self._sums = self._spaced(self._tile.scratch, F32, count, len(self._vectors))

        def sum_group(i: ir.Value) -> None:
            for x, sums in zip(self._vectors, self._sums, strict=True):
                first = builder.gep(x, [builder.mul(i, I64(group))])
                numbers = loaded(builder, first, self._dtype, group)
                total = ZERO
                for start in range(0, group, LANES):
                    total = builder.fadd(total, numbers[start : start + LANES].value)
                builder.store(sum_of(builder, total), builder.gep(sums, [i]))

        repeat(builder, I64(0), count, 1, sum_group)

    def _row(self, row: ir.Value) -> None:
        builder, tile, columns = self._builder, self._tile, len(self._vectors)
        source = builder.gep(tile.weights, [builder.mul(row, tile.row_bytes)])
        totals = [ZERO] * (_TOTALS * columns)
        done = I64(0)
        if self._kind.block_size == 1:
            done = builder.and_(tile.blocks, I64(-_AT_ONCE))
            totals = self._blocks(source, I64(0), done, _AT_ONCE, totals)
        totals = self._blocks(source, done, tile.blocks, 1, totals)
        for i, results in enumerate(self._results):
            total = functools.reduce(builder.fadd, totals[i::columns])
            value = Vector(builder, sum_of(builder, total))
            bits = stored(value, self._out_dtype, usual=False)
            builder.store(bits.value, builder.gep(results, [row]))

    def _blocks(
        self,
        source: ir.Value,
        start: ir.Value,
        stop: ir.Value,
        step: int,
        totals: list[ir.Value],
    ) -> list[ir.Value]:
        """Add the products of some of a row's blocks, ``step`` at once, to totals."""
        builder, kind = self._builder, self._kind
        group = products_of(kind).offset_group

        def block(i: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            place = builder.mul(i, I64(kind.block_size))
            vectors = [builder.gep(x, [place]) for x in self._vectors]
            sums = []
            if group:
                place = builder.mul(i, I64(kind.block_size // group))
                sums = [builder.gep(s, [place]) for s in self._sums]
            products = Products(builder, vectors, self._dtype, sums, totals, step)
            first = builder.gep(source, [builder.mul(i, I64(kind.type_size))])
            fetch(builder, builder.gep(first, [I64(AHEAD)]), kind.type_size * step)
            decoder_of(kind)(Bytes(builder, first), products)
            products.finish()
            return products.totals

        return fold(builder, start, stop, step, totals, block)
