"""Decoding GGUF blocks, with all the cores a process may use."""

from __future__ import annotations

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

    rows = _rows_of(out)
    if rows is None:
        aside = out.dtype if out.dtype in OUTPUT_DTYPES else torch.float32
        rows = torch.empty(shape, dtype=aside, device="cpu").view(-1, shape[-1])
    blocks_of_rows = source.reshape(-1, source.shape[-1])  # a copy if they are not evenly spaced
    if blocks_of_rows.strides[-1] != 1:
        blocks_of_rows = np.ascontiguousarray(blocks_of_rows)
    _decode(kind, blocks_of_rows, rows, threads)
    if rows.data_ptr() != out.data_ptr():
        out.copy_(rows.view(shape))
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


def _rows_of(out: torch.Tensor) -> torch.Tensor | None:
    """``[rows, n]`` of the same memory, if a decoder can write there; else None."""
    if out.device.type != "cpu" or out.dtype not in OUTPUT_DTYPES or out.stride(-1) != 1:
        return None
    try:
        return out.view(-1, out.shape[-1])
    except RuntimeError:  # rows are not evenly spaced
        return None


def _decode(kind: BlockType, source: np.ndarray, target: torch.Tensor, threads: int | None) -> None:
    """Decode rows into rows on the host; both have adjacent elements in a row."""
    from ascend_gguf.decoders.rows import kernel  # imports a compiler

    decode = kernel(kind, target.dtype)
    in_parallel((partial(decode, *piece) for piece in _pieces(kind, source, target)), threads)


def _pieces(
    kind: BlockType, source: np.ndarray, target: torch.Tensor
) -> Iterator[tuple[tuple[int, int], tuple[int, int], int, int]]:
    """The work in pieces, each the arguments of :func:`.decoders.rows.kernel`."""
    rows, cols = target.shape
    (x_stride, _), y_stride = source.strides, target.stride(0)
    row_step = max(1, WEIGHTS_PER_PIECE // cols)
    step = max(1, WEIGHTS_PER_PIECE // kind.block_size) * kind.block_size
    for row in range(0, rows, row_step):
        for col in range(0, cols, step):
            x = source.ctypes.data + row * x_stride + kind.row_bytes(col)
            y = target.data_ptr() + (row * y_stride + col) * target.itemsize
            blocks = min(step, cols - col) // kind.block_size
            yield (x, x_stride), (y, y_stride), min(row_step, rows - row), blocks
