"""A job: matrices of blocks to multiply with vectors, cut into tiles that threads take in turn.

What is done with a tile is the same whichever thread does it: see
:mod:`~ascend_gguf.codegen.tile_loop`.
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir

from ascend_gguf.codegen import threads
from ascend_gguf.codegen.control import minimum
from ascend_gguf.codegen.tile_loop import HEAD, Kernel, each_turn
from ascend_gguf.codegen.vectors import I8, I64

#: How many bytes before it reads a matrix's blocks a kernel asks memory for them: what the
#: processor expects to be read it asks for too late.  Rows, and tiles, lie one after the other.
AHEAD = 4096

# A job begins with these, then come four for each product.
_FIELDS = (
    *HEAD, "x", "out", "tiles_per_product", "tile_rows",
    "rows", "blocks", "row_bytes", "x_stride", "out_stride", "scratch",
)  # fmt: skip
_PRODUCT = ("weights", "x", "out", "columns")
_PLACE = {name: i for i, name in enumerate(_FIELDS)}


class Job:
    """What is to be multiplied, without the vectors: the same job may be run for many.

    Args:
        kernel: does it.
        products: for each the address of a matrix, how many bytes after the first vector its
            vectors begin, how many after the first result its results, and how many vectors.
        rows, blocks, row_bytes: the shape of each matrix; bytes from one row to the next.
        x_stride, out_stride: numbers from one vector, or its results, to the next.
        tile_rows: rows that a thread takes at a time.
        scratch: bytes of its stack that a thread needs for a tile.
    """

    def __init__(
        self,
        kernel: Kernel,
        products: Sequence[tuple[int, int, int, int]],
        *,
        rows: int,
        blocks: int,
        row_bytes: int,
        x_stride: int,
        out_stride: int,
        tile_rows: int,
        scratch: int,
    ) -> None:
        self._kernel = kernel
        tiles_per_product = -(-rows // tile_rows)
        tiles = tiles_per_product * len(products)
        self._numbers = array("q", [0, 0, tiles, 0, 0, tiles_per_product, tile_rows])
        self._numbers.extend((rows, blocks, row_bytes, x_stride, out_stride, scratch))
        for product in products:
            self._numbers.extend(product)

    def run(self, x: int, out: int, most_threads: int | None = None) -> None:
        """Multiply: the addresses of the first vector and of the first result."""
        numbers = self._numbers[:]  # for this run alone
        numbers[_PLACE["x"]], numbers[_PLACE["out"]] = x, out
        threads.run(self._kernel, numbers, most_threads)


@dataclass(frozen=True)
class Tile:
    """A product and some of its rows, as values that the machine code will know.

    Attributes:
        weights, x, out: addresses of the matrix, of the first vector and of its results.
        columns: how many vectors.
        first, stop: the rows.
        scratch: an address, a multiple of 64.
    """

    weights: ir.Value
    x: ir.Value
    out: ir.Value
    columns: ir.Value
    first: ir.Value
    stop: ir.Value
    blocks: ir.Value
    row_bytes: ir.Value
    x_stride: ir.Value
    out_stride: ir.Value
    scratch: ir.Value


@contextlib.contextmanager
def each_tile(module: ir.Module) -> Iterator[tuple[ir.IRBuilder, Tile]]:
    """Write a kernel; the body of the statement writes what is done with a tile."""
    with each_turn(module) as (builder, numbers, tile):
        with builder.goto_entry_block():
            field = {
                name: builder.load(builder.gep(numbers, [I64(place)]))
                for name, place in _PLACE.items()
            }
            scratch = builder.alloca(I8, field["scratch"])
            scratch.align = 64

        def load(index: ir.Value) -> ir.Value:
            return builder.load(builder.gep(numbers, [index]))

        def pointer(address: ir.Value) -> ir.Value:
            return builder.inttoptr(address, I8.as_pointer())

        place = builder.mul(builder.sdiv(tile, field["tiles_per_product"]), I64(len(_PRODUCT)))
        weights, x, out, columns = (
            load(builder.add(place, I64(len(_FIELDS) + i))) for i in range(len(_PRODUCT))
        )
        x, out = builder.add(field["x"], x), builder.add(field["out"], out)
        first = builder.mul(builder.srem(tile, field["tiles_per_product"]), field["tile_rows"])
        stop = minimum(builder, builder.add(first, field["tile_rows"]), field["rows"])
        yield (
            builder,
            Tile(
                pointer(weights),
                pointer(x),
                pointer(out),
                columns,
                first,
                stop,
                field["blocks"],
                field["row_bytes"],
                field["x_stride"],
                field["out_stride"],
                scratch,
            ),
        )
