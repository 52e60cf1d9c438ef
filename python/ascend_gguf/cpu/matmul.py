"""Products of matrices in blocks with vectors: which kernel does them, and tile by tile how."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from ascend_gguf.codegen import Kernel, processor
from ascend_gguf.cpu import gemm, gemv
from ascend_gguf.decoders.dequantize import OUTPUT_DTYPES, dequantize
from ascend_gguf.ggml_types import BlockType

#: The most vectors for which it is faster to decode in registers than to store what is decoded,
#: and the most where those that are many would be multiplied as bfloat16 but these as float32.
GEMV_COLUMNS, GEMV_FLOAT_COLUMNS = 4, 2
#: From how many vectors on torch multiplies, where it has better instructions than ours.
TORCH_COLUMNS = 32

# Which matrix of one; the argument of kernels where none is chosen.
_FIRST = torch.zeros(1, dtype=torch.int32)

# A thread takes no fewer weights at a time, and no more: a microsecond of work, and some.
_LEAST_WEIGHTS, _MOST_WEIGHTS = 1 << 14, 1 << 16
# Bytes of decoded weights: for a thread a part of its second-level cache; for all of torch.
_TILE_BYTES, _CHUNK_BYTES = 1 << 18, 1 << 22


class Product(NamedTuple):
    """A matrix and the vectors to multiply it with.

    Attributes:
        matrix: which one.
        x, out: the first of the vectors, and of the results.
        columns: how many vectors.
    """

    matrix: int
    x: int
    out: int
    columns: int


class Matmul:
    """``out[j] = matrices[i] @ x[k]`` for some ``i``, ``j`` and ``k``, and which kernels do it.

    Which matrices may be known only when it runs: then each product is of one vector.

    Up to :func:`most_gemv_vectors` vectors meet exact weights; for more, weights are rounded to
    bfloat16 if the vectors are bfloat16.  Sums are float32.  Except where torch multiplies, the
    number of threads does not change a bit.

    Args:
        matrices: uint8 ``[n, rows, row_bytes]`` on the host, whole rows of blocks, contiguous.
        products: what to multiply with what.
        dtype, out_dtype: of ``x`` and ``out``: float32, bfloat16 or float16.
        out_stride: elements from one row of ``out`` to the next.
        columns: ``(first, count)``: of the matrices' columns those that vectors meet; all by
            default.

    Raises:
        ValueError: another dtype.
    """

    def __init__(
        self,
        kind: BlockType,
        matrices: torch.Tensor,
        products: Sequence[Product],
        dtype: torch.dtype,
        out_dtype: torch.dtype,
        out_stride: int,
        columns: tuple[int, int] | None = None,
    ) -> None:
        if dtype not in OUTPUT_DTYPES:
            raise ValueError(f"vectors must be one of {OUTPUT_DTYPES}, not {dtype}")
        self._kind, self._matrices, self._columns = kind, matrices, columns
        self._dtype, self._out_dtype, self._out_stride = dtype, out_dtype, out_stride
        # Each takes x, out, which matrices, and the most threads.
        self._steps: list[Callable[..., None]] = []
        by_columns: dict[int, list[Product]] = {}
        for product in products:
            if product.columns <= most_gemv_vectors(kind, dtype):
                by_columns.setdefault(product.columns, []).append(product)
            elif product.columns >= TORCH_COLUMNS and torch_is_better(dtype):
                self._steps.append(functools.partial(self._by_torch, product))
            else:
                by_columns.setdefault(0, []).append(product)
        for count, some in by_columns.items():
            self._steps.append(self._gemv(count, some) if count else self._gemm(some))

    def run(
        self,
        x: torch.Tensor,
        out: torch.Tensor,
        threads: int | None = None,
        chosen: torch.Tensor | None = None,
    ) -> None:
        """``x [m, cols]``, contiguous, and ``out [m, rows]``, rows as far apart as said.

        Args:
            threads: the most to use; all that torch computes with by default.
            chosen: int32, contiguous: for each product, which are of the first matrix and of one
                vector each, of which it is instead.  Any other number is the first's.
        """
        if self._columns is not None:
            # Columns of covering blocks that are not the weight's meet zeros.
            first, count = self._columns
            behind = self._kind.row_cols(self._matrices.shape[2]) - first - count
            x = F.pad(x[:, :count], (first, behind))
        for step in self._steps:
            step(x, out, chosen, threads)

    def _gemv(self, columns: int, products: Sequence[Product]) -> Callable:
        kind, (_, rows, row_bytes) = self._kind, self._matrices.shape
        dtype = _work_dtype(self._dtype, gemv.dot_of(kind).has_codebooks)
        cols = kind.row_cols(row_bytes)
        kernel = gemv.kernel(kind, dtype, self._out_dtype, columns)
        tile_rows = _tile_rows(rows * len(products), cols, _MOST_WEIGHTS)
        scratch = gemv.scratch(kind, cols, columns)
        return self._launch(kernel, dtype, products, tile_rows, scratch)

    def _gemm(self, products: Sequence[Product]) -> Callable:
        kind, (_, rows, row_bytes) = self._kind, self._matrices.shape
        dtype, cols = _work_dtype(self._dtype), kind.row_cols(row_bytes)
        kernel = gemm.kernel(kind, dtype, self._out_dtype)
        tile_rows = _tile_rows(rows * len(products), cols, _TILE_BYTES // dtype.itemsize)
        scratch = gemm.scratch(cols, tile_rows, dtype)
        return self._launch(kernel, dtype, products, tile_rows, scratch)

    def _launch(
        self,
        kernel: Kernel,
        dtype: torch.dtype,
        products: Sequence[Product],
        tile_rows: int,
        scratch: int,
    ) -> Callable:
        """A step that a kernel does."""
        _, rows, row_bytes = self._matrices.shape
        cols, tiles = self._kind.row_cols(row_bytes), -(-rows // tile_rows)
        arguments = [tiles, tile_rows, rows, scratch]
        arguments += [row_bytes // self._kind.type_size, row_bytes, cols, self._out_stride]
        places: list[int] = []
        for p in products:
            matrix = self._matrices.data_ptr() + p.matrix * rows * row_bytes
            places += [matrix, p.x * cols, p.out * self._out_stride, p.columns]
        tiles *= len(products)

        def step(
            x: torch.Tensor, out: torch.Tensor, chosen: torch.Tensor | None, threads: int | None
        ) -> None:
            if x.dtype != dtype:
                x = x.to(dtype)
            ids = [_FIRST.data_ptr(), 0, 1, 0]
            if chosen is not None:
                ids = [chosen.data_ptr(), 1, len(self._matrices), rows * row_bytes]
            addresses = x.data_ptr(), out.data_ptr()
            kernel.run(tiles, *addresses, *arguments, *ids, *places, most_threads=threads)

        return step

    def _by_torch(
        self, product: Product, x: torch.Tensor, out: torch.Tensor, _: None, threads: int | None
    ) -> None:
        """Some rows at a time, decoded to the dtype of the vectors."""
        matrix = self._matrices[product.matrix]
        x = x[product.x : product.x + product.columns]
        out = out[product.out : product.out + product.columns]
        step = max(1, _CHUNK_BYTES // (x.shape[1] * x.itemsize))
        for row in range(0, len(matrix), step):
            some = matrix[row : row + step]
            weights = dequantize(some, self._kind.ggml_type, x.dtype, threads=threads)
            out[:, row : row + step] = F.linear(x, weights)


def most_gemv_vectors(kind: BlockType, dtype: torch.dtype) -> int:
    """The most vectors of a dtype for which weights of a type are decoded in registers."""
    has_codebooks = gemv.dot_of(kind).has_codebooks
    is_same = _work_dtype(dtype, has_codebooks) == _work_dtype(dtype)
    return GEMV_COLUMNS if is_same else GEMV_FLOAT_COLUMNS


def torch_is_better(dtype: torch.dtype) -> bool:
    """Whether torch has instructions for products of many vectors that our kernels have not."""
    features = processor.host_features()
    has_matrices = dtype == torch.bfloat16 and features.get("amx-bf16", False)
    return has_matrices or not features.get("avx512f", False)


def _work_dtype(dtype: torch.dtype, takes_bfloats: bool = True) -> torch.dtype:
    """What vectors of a dtype are multiplied as."""
    is_bfloat = dtype == torch.bfloat16 and processor.BFLOAT_INSTRUCTIONS and takes_bfloats
    return torch.bfloat16 if is_bfloat else torch.float32


def _tile_rows(rows: int, cols: int, most_weights: int) -> int:
    """How many of all rows a thread takes at a time."""
    share = rows // (4 * torch.get_num_threads())  # a few for each, so that none waits for long
    weights = min(max(share * cols, _LEAST_WEIGHTS), most_weights)
    return max(weights // cols // gemm.ROWS, 1) * gemm.ROWS
