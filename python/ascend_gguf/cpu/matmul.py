"""Products of matrices in blocks with vectors: which kernel does them, and tile by tile how."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F

from ascend_gguf.codegen.vectors import BFLOAT_INSTRUCTIONS, host_features
from ascend_gguf.cpu import gemm, gemv
from ascend_gguf.cpu.launch import Job, Kernel
from ascend_gguf.decoders.dequantize import dequantize
from ascend_gguf.ggml_types import BlockType

#: The most vectors for which it is faster to decode in registers than to store what is decoded,
#: and the most where those that are many would be multiplied as bfloat16 but these as float32.
FUSED_COLUMNS, FUSED_FLOAT_COLUMNS = 4, 2
#: From how many vectors on torch multiplies, where it has better instructions than ours.
TORCH_COLUMNS = 32

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


class Step(Protocol):
    """Does some of what was planned."""

    def run(self, x: torch.Tensor, out: torch.Tensor, threads: int | None = None) -> None:
        """``x [m, cols]``, contiguous, and ``out [m, rows]``, both of the dtypes planned for.

        ``threads``: the most to use; all that torch computes with by default.
        """


def plan(
    kind: BlockType,
    matrices: torch.Tensor,
    products: Sequence[Product],
    dtype: torch.dtype,
    out_dtype: torch.dtype,
    out_stride: int,
) -> list[Step]:
    """How to do ``out[j] = matrices[i] @ x[k]`` for some ``i``, ``j`` and ``k``.

    Up to :func:`most_gemv_vectors` vectors meet exact weights; for more, weights are rounded to
    bfloat16 if the vectors are bfloat16.  Sums are float32.  Except where torch multiplies, the
    number of threads does not change a bit.

    Args:
        matrices: uint8 ``[n, rows, row_bytes]`` on the host, whole rows of blocks, contiguous.
        products: what to multiply with what.
        dtype, out_dtype: of ``x`` and ``out``: float32, bfloat16 or float16.
        out_stride: numbers from one row of ``out`` to the next.
    """
    steps: list[Step] = []
    by_columns: dict[int, list[Product]] = {}
    for product in products:
        if product.columns <= most_gemv_vectors(kind, dtype):
            by_columns.setdefault(product.columns, []).append(product)
        elif product.columns >= TORCH_COLUMNS and torch_is_better(dtype):
            steps.append(_TorchStep(kind, matrices, product))
        else:
            by_columns.setdefault(0, []).append(product)
    rows, cols = matrices.shape[1], kind.row_cols(matrices.shape[2])
    for columns, some in by_columns.items():
        if columns:
            work_dtype = _work_dtype(dtype, gemv.products_of(kind).all_coded)
            kernel = gemv.kernel(kind, work_dtype, out_dtype, columns)
            tile_rows = _tile_rows(rows * len(some), cols, _MOST_WEIGHTS)
            scratch = gemv.scratch(kind, cols, columns)
        else:
            work_dtype = _work_dtype(dtype)
            kernel = gemm.kernel(kind, work_dtype, out_dtype)
            tile_rows = _tile_rows(rows * len(some), cols, _TILE_BYTES // work_dtype.itemsize)
            scratch = gemm.scratch(cols, tile_rows, work_dtype)
        steps.append(
            _KernelStep(
                kind, matrices, some, kernel, work_dtype, out_dtype, out_stride, tile_rows, scratch
            )
        )
    return steps


def most_gemv_vectors(kind: BlockType, dtype: torch.dtype) -> int:
    """The most vectors of a dtype for which weights of a type are decoded in registers."""
    is_coded = gemv.products_of(kind).all_coded
    is_same = _work_dtype(dtype, is_coded) == _work_dtype(dtype)
    return FUSED_COLUMNS if is_same else FUSED_FLOAT_COLUMNS


def torch_is_better(dtype: torch.dtype) -> bool:
    """Whether torch has instructions for products of many vectors that our kernels have not."""
    features = host_features()
    has_matrices = dtype == torch.bfloat16 and features.get("amx-bf16", False)
    return has_matrices or not features.get("avx512f", False)


def _work_dtype(dtype: torch.dtype, takes_bfloats: bool = True) -> torch.dtype:
    """What vectors of a dtype are multiplied as."""
    is_bfloat = dtype == torch.bfloat16 and BFLOAT_INSTRUCTIONS and takes_bfloats
    return torch.bfloat16 if is_bfloat else torch.float32


def _tile_rows(rows: int, cols: int, most_weights: int) -> int:
    """How many of all rows a thread takes at a time."""
    share = rows // (4 * torch.get_num_threads())  # a few for each, so that none waits for long
    weights = min(max(share * cols, _LEAST_WEIGHTS), most_weights)
    return max(weights // cols // gemm.ROWS, 1) * gemm.ROWS


class _KernelStep:
    """A job for one of our kernels."""

    def __init__(
        self,
        kind: BlockType,
        matrices: torch.Tensor,
        products: Sequence[Product],
        kernel: Kernel,
        work_dtype: torch.dtype,
        out_dtype: torch.dtype,
        out_stride: int,
        tile_rows: int,
        scratch: int,
    ) -> None:
        self._work_dtype = work_dtype
        self._matrices = matrices  # the job knows but their address
        _, rows, row_bytes = matrices.shape
        cols = kind.row_cols(row_bytes)
        first, x_bytes, out_bytes = (
            matrices.data_ptr(),
            cols * work_dtype.itemsize,
            out_stride * out_dtype.itemsize,
        )
        self._job = Job(
            kernel,
            [
                (first + p.matrix * rows * row_bytes, p.x * x_bytes, p.out * out_bytes, p.columns)
                for p in products
            ],
            rows=rows,
            blocks=row_bytes // kind.type_size,
            row_bytes=row_bytes,
            x_stride=cols,
            out_stride=out_stride,
            tile_rows=tile_rows,
            scratch=scratch,
        )

    def run(self, x: torch.Tensor, out: torch.Tensor, threads: int | None = None) -> None:
        if x.dtype != self._work_dtype:
            x = x.to(self._work_dtype)
        self._job.run(x.data_ptr(), out.data_ptr(), threads)


class _TorchStep:
    """A product that torch does: some rows at a time, decoded to the dtype of the vectors."""

    def __init__(self, kind: BlockType, matrices: torch.Tensor, product: Product) -> None:
        self._kind = kind
        self._matrix = matrices[product.matrix]
        self._product = product

    def run(self, x: torch.Tensor, out: torch.Tensor, threads: int | None = None) -> None:
        _, first_x, first_out, columns = self._product
        x = x[first_x : first_x + columns]
        out = out[first_out : first_out + columns]
        step = max(1, _CHUNK_BYTES // (x.shape[1] * x.itemsize))
        for row in range(0, len(self._matrix), step):
            some = self._matrix[row : row + step]
            weights = dequantize(some, self._kind.ggml_type, x.dtype, threads=threads)
            out[:, row : row + step] = F.linear(x, weights)
