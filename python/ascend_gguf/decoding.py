"""Decoding GGUF blocks to numbers."""

from __future__ import annotations

import numpy as np
import torch
from gguf import GGMLQuantizationType, quants

from ascend_gguf.errors import GGUFError
from ascend_gguf.ggml_types import block_type

#: Dtypes a decoder can write.  float16 and bfloat16 are the float32 value rounded to nearest even.
OUTPUT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Rows are decoded in pieces of about this many weights: the numpy decoders hold several float32
# temporaries of the size of their input.
_WEIGHTS_PER_PIECE = 1 << 22


def dequantize(
    blocks: torch.Tensor | np.ndarray,
    ggml_type: int,
    dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Decode rows of GGUF blocks.

    Args:
        blocks: uint8, ``[..., row_bytes]``, on the host; any strides.
        ggml_type: the id of the block type (``gguf.GGMLQuantizationType``).
        dtype: dtype of the result, one of :data:`OUTPUT_DTYPES`; ignored when ``out`` is given.
        out: where to write, ``[..., n]`` with ``n`` the weights in a row; any dtype torch converts
            float32 to, any device.

    Returns:
        ``out``, or a new tensor ``[..., n]`` of ``dtype``.

    Raises:
        GGUFError: unknown or undecodable type, a row that is not whole blocks.
        ValueError: ``dtype`` or the shape or dtype of an argument is not one of the above.
    """
    kind = block_type(ggml_type)
    blocks = torch.as_tensor(blocks)
    if blocks.dtype != torch.uint8 or blocks.dim() == 0:
        raise ValueError(
            f"blocks must be uint8 of at least one dimension, got {blocks.dtype} "
            f"of shape {tuple(blocks.shape)}"
        )
    shape = (*blocks.shape[:-1], kind.row_cols(blocks.shape[-1]))
    if out is None:
        if dtype not in OUTPUT_DTYPES:
            names = ", ".join(str(d) for d in OUTPUT_DTYPES)
            raise ValueError(f"dtype must be one of {names}, got {dtype}")
        out = torch.empty(shape, dtype=dtype)
    elif tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, the blocks hold {shape}")
    if out.numel() == 0:
        return out

    decode = _DECODERS.get(kind.ggml_type, _decode_with_gguf_py)
    cols = shape[-1]
    rows = blocks.reshape(-1, blocks.shape[-1])
    # A view where ``out`` allows one; otherwise decode aside and copy once at the end.
    flat = (
        out.view(-1, cols)
        if out.is_contiguous()
        else torch.empty((rows.shape[0], cols), dtype=out.dtype, device=out.device)
    )
    step = max(1, _WEIGHTS_PER_PIECE // cols)
    for start in range(0, rows.shape[0], step):
        piece = np.ascontiguousarray(rows[start : start + step].numpy())
        flat[start : start + step].copy_(torch.from_numpy(decode(piece, kind.ggml_type)))
    if not out.is_contiguous():
        out.copy_(flat.view(shape))
    return out


def _decode_with_gguf_py(rows: np.ndarray, ggml_type: GGMLQuantizationType) -> np.ndarray:
    """uint8 ``[rows, row_bytes]`` to float32 ``[rows, cols]`` by gguf-py's numpy decoders."""
    try:
        values = quants.dequantize(rows, ggml_type)
    except NotImplementedError as error:
        raise GGUFError(
            "no decoder for this block type",
            found=ggml_type.name,
            hint="Requantize the model to another type.",
        ) from error
    return values.astype(np.float32, copy=False)


def _decode_q1_0(rows: np.ndarray, ggml_type: GGMLQuantizationType) -> np.ndarray:
    """Q1_0: a float16 ``d`` and 128 sign bits, least significant first: ``d`` or ``-d``.

    Source: ggml's ``dequantize_row_q1_0``; gguf-py has no decoder of this type.
    """
    kind = block_type(ggml_type)
    groups = rows.reshape(-1, kind.type_size)
    scale = groups[:, :2].copy().view(np.float16).astype(np.float32)
    bits = np.unpackbits(groups[:, 2:], axis=1, bitorder="little")
    return np.where(bits.astype(bool), scale, -scale).reshape(rows.shape[0], -1)


_DECODERS = {GGMLQuantizationType.Q1_0: _decode_q1_0}
