"""Decoding GGUF blocks, with all the cores a process may use."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from ascend_gguf.errors import GGUFError
from ascend_gguf.ggml_types import BlockType, block_type
from ascend_gguf.thread_pool import WEIGHTS_PER_PIECE, in_parallel

#: Dtypes a decoder can write.  float16 and bfloat16 are the float32 value rounded to nearest even.
OUTPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def dequantize(
    blocks: torch.Tensor | np.ndarray,
    ggml_type: int,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    threads: int | None = None,
) -> torch.Tensor:
    """Decode rows of GGUF blocks.

    Args:
        blocks: uint8, ``[..., row_bytes]``, on the host; any strides.
        ggml_type: the id of the block type (``gguf.GGMLQuantizationType``).
        dtype: dtype of the result, one of :data:`OUTPUT_DTYPES`; ignored when ``out`` is given.
        out: where to write, ``[..., n]`` with ``n`` the weights in a row; any dtype torch converts
            float32 to, any device.  Written without a copy if it is on the host, of one of
            :data:`OUTPUT_DTYPES`, and the weights of a row are adjacent.
        threads: the most threads to use; by default :data:`.thread_pool.thread_limit`, or else
            :func:`.thread_pool.default_threads`.  Their number does not change the result.

    Returns:
        ``out``, or a new tensor ``[..., n]`` of ``dtype`` on the host.

    Raises:
        GGUFError: unknown or undecodable type, a row that is not whole blocks.
        ValueError: ``dtype``, ``threads``, or the shape or dtype of an argument is not one of the
            above.
    """
    kind = block_type(ggml_type)
    source = _bytes_of(blocks)
    shape = (*source.shape[:-1], kind.row_cols(source.shape[-1]))
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if kind.decoder is None:
        raise GGUFError(
            "no decoder for this block type",
            found=kind.name,
            hint="Requantize the model to another type.",
        )
    if out is None:
        if dtype not in OUTPUT_DTYPES:
            names = ", ".join(str(d) for d in OUTPUT_DTYPES)
            raise ValueError(f"dtype must be one of {names}, got {dtype}")
        out = torch.empty(shape, dtype=dtype, device="cpu")
    elif tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the blocks hold {shape}")
    if out.numel() == 0:
        return out

    is_direct = out.device.type == "cpu" and out.dtype in OUTPUT_DTYPES and out.stride(-1) == 1
    target = out
    if not is_direct:
        aside = out.dtype if out.dtype in OUTPUT_DTYPES else torch.float32
        target = torch.empty(shape, dtype=aside, device="cpu")
    if source.strides[-1] != 1:
        source = np.ascontiguousarray(source)
    _decode(kind, source, target, threads)
    if not is_direct:
        out.copy_(target)
    return out


def _bytes_of(blocks: torch.Tensor | np.ndarray) -> np.ndarray:
    """``blocks`` as an array that shares their memory."""
    array = blocks.numpy() if isinstance(blocks, torch.Tensor) else np.asarray(blocks)
    if array.dtype != np.uint8 or array.ndim == 0:
        raise ValueError(
            f"blocks must be uint8 of at least one dimension, got {array.dtype} "
            f"of shape {array.shape}"
        )
    return array


def _decode(kind: BlockType, source: np.ndarray, target: torch.Tensor, threads: int | None) -> None:
    """Decode into a tensor on the host; both have adjacent elements in a row."""
    from ascend_gguf.decoders.rows import kernel  # imports a compiler

    decode = kernel(kind, target.dtype)
    in_parallel((partial(decode, *piece) for piece in _pieces(kind, source, target)), threads)


def _pieces(
    kind: BlockType, source: np.ndarray, target: torch.Tensor
) -> Iterator[tuple[tuple[int, int], tuple[int, int], int, int]]:
    """The work in pieces, each the arguments of :func:`.decoders.rows.kernel`."""
    # Dimensions as (size, bytes to the next, weights to the next), the blocks of a row last.
    dims = _merged(
        [
            *zip(source.shape[:-1], source.strides[:-1], target.stride()[:-1], strict=True),
            (source.shape[-1] // kind.type_size, kind.type_size, kind.block_size),
        ]
    )
    *outer, (rows, x_stride, y_stride), (blocks, type_size, block_size) = dims
    x, y = source.ctypes.data, target.data_ptr()
    row_step = max(1, WEIGHTS_PER_PIECE // (blocks * block_size))
    block_step = max(1, WEIGHTS_PER_PIECE // block_size)
    for index in itertools.product(*(range(size) for size, _, _ in outer)):
        x_matrix = x + sum(i * step for i, (_, step, _) in zip(index, outer, strict=True))
        y_matrix = sum(i * step for i, (_, _, step) in zip(index, outer, strict=True))
        for row in range(0, rows, row_step):
            for block in range(0, blocks, block_step):
                y_piece = y_matrix + row * y_stride + block * block_size
                yield (
                    (x_matrix + row * x_stride + block * type_size, x_stride),
                    (y + y_piece * target.itemsize, y_stride),
                    min(row_step, rows - row),
                    min(block_step, blocks - block),
                )


def _merged(dims: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Two dimensions or more that visit the same elements; the first two may be of size 1."""
    merged = [dims[-1]]
    for size, x_stride, y_stride in reversed(dims[:-1]):
        inner, inner_x, inner_y = merged[0]
        if size == 1:
            continue
        if (x_stride, y_stride) == (inner * inner_x, inner * inner_y):
            merged[0] = (size * inner, inner_x, inner_y)
        else:
            merged.insert(0, (size, x_stride, y_stride))
    return [(1, 0, 0)] * (2 - len(merged)) + merged
