"""Matrices of blocks to multiply with vectors, cut into tiles: how GEMV and GEMM are launched.

The result of a tile does not depend on the thread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from ascend_gguf.codegen import I8, I32, I64, REST, Kernel, Value, load, local, minimum, pointer
from ascend_gguf.codegen.kernel import address_of

#: How many bytes ahead a kernel prefetches a matrix's blocks: the processor's own prefetcher comes
#: too late.  Rows, and tiles, lie one after the other.
AHEAD = 4096

# Launch arguments of each product: the address of a matrix, the first of its vectors and of its
# results, in elements, and how many vectors.
_PRODUCT = 4


@dataclass(frozen=True)
class Tile:
    """A product and some of its rows.

    Attributes:
        weights: the address of the matrix, of bytes.
        x, out: the addresses of the first vector and of its results.
        columns: how many vectors.
        first, stop: the rows.
        blocks, row_bytes: in a row of the matrix.
        x_stride, out_stride: elements from one vector, or its results, to the next.
        scratch: bytes of the thread, aligned to 64.
    """

    weights: Value
    x: Value
    out: Value
    columns: Value
    first: Value
    stop: Value
    blocks: Value
    row_bytes: Value
    x_stride: Value
    out_stride: Value
    scratch: Value


def matmul_kernel(
    name: str, dtype: torch.dtype, out_dtype: torch.dtype, write: Callable[[Tile], None]
) -> Kernel:
    """A kernel that calls ``write`` for each tile.

    Its arguments are in this order, then :data:`_PRODUCT` for each product.  ``ids`` are int32:
    which of ``matrices`` a product is of, each ``matrix_bytes`` behind the one before; 0 for one
    that there is not.  ``id_step`` is how far apart those of two products are; 0 if they share one.
    """

    def tile(
        tile: Value,
        x: Value,
        out: Value,
        tiles_per_product: Value,
        tile_rows: Value,
        rows: Value,
        scratch: Value,
        ids: Value,
        id_step: Value,
        matrices: Value,
        matrix_bytes: Value,
        products: Value,
        **shape: Value,
    ) -> None:
        index = tile // tiles_per_product
        product = products + index * _PRODUCT
        weights, first_x, first_out, columns = (load(product + i) for i in range(_PRODUCT))
        chosen = load(ids + index * id_step).zext(I64)
        weights = weights + chosen.below(matrices).select(chosen, 0) * matrix_bytes
        first = tile % tiles_per_product * tile_rows
        stop = minimum(first + tile_rows, rows)
        weights, x, out = address_of(weights, I8), x + first_x, out + first_out
        write(Tile(weights, x, out, columns, first, stop, scratch=local(I8, scratch), **shape))

    return Kernel(
        name,
        tile,
        x=pointer(dtype),
        out=pointer(out_dtype),
        tiles_per_product=I64,
        tile_rows=I64,
        rows=I64,
        scratch=I64,
        blocks=I64,
        row_bytes=I64,
        x_stride=I64,
        out_stride=I64,
        ids=pointer(I32),
        id_step=I64,
        matrices=I64,
        matrix_bytes=I64,
        products=REST,
    )
