"""The table of GGML block types: everything the project knows about a type is one row of it.

A GGUF tensor is stored row by row; a row is a whole number of blocks, and a block packs
``block_size`` weights into ``type_size`` bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES

from ascend_gguf.errors import GGUFError


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor's weights are packed.

    Attributes:
        ggml_type: the type's id in the file, an ``IntEnum``.
        block_size: weights in a block; 1 for plain numbers.
        type_size: bytes in a block.
        dtype: what torch calls the numbers of an unquantized type; None for a quantized one.
        decoder: the module of :mod:`ascend_gguf.decoders` with the function that decodes a block,
            which is named like the type in lower case; None if the type cannot be decoded.
    """

    ggml_type: GGMLQuantizationType
    block_size: int
    type_size: int
    dtype: torch.dtype | None
    decoder: str | None

    @property
    def name(self) -> str:
        """The name ggml gives the type, such as ``Q4_K``."""
        return self.ggml_type.name

    @property
    def is_quantized(self) -> bool:
        """False for the plain floats (F32, F16, BF16, F64) and integers."""
        return self.dtype is None

    def row_bytes(
        self,
        cols: int,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
    ) -> int:
        """Bytes in a row of ``cols`` weights.

        Raises:
            GGUFError: the row is not a whole number of blocks; names ``file`` and ``tensor``.
        """
        if cols % self.block_size:
            raise GGUFError(
                f"a row is not a whole number of {self.name} blocks",
                file=file,
                tensor=tensor,
                found=f"{cols} weights",
                expected=f"a multiple of {self.block_size}",
                hint="Quantize the tensor to another type.",
            )
        return cols // self.block_size * self.type_size

    def row_cols(
        self,
        nbytes: int,
        *,
        file: str | os.PathLike[str] | None = None,
        tensor: str | None = None,
    ) -> int:
        """Weights in a row of ``nbytes`` bytes: the inverse of :meth:`row_bytes`.

        Raises:
            GGUFError: the row is not a whole number of blocks; names ``file`` and ``tensor``.
        """
        if nbytes % self.type_size:
            raise GGUFError(
                f"a row is not a whole number of {self.name} blocks",
                file=file,
                tensor=tensor,
                found=f"{nbytes} bytes",
                expected=f"a multiple of {self.type_size}",
            )
        return nbytes // self.type_size * self.block_size


_DTYPES = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
    GGMLQuantizationType.F64: torch.float64,
    GGMLQuantizationType.I8: torch.int8,
    GGMLQuantizationType.I16: torch.int16,
    GGMLQuantizationType.I32: torch.int32,
    GGMLQuantizationType.I64: torch.int64,
}

# Names, not values: a gguf-py older than a type lacks it.
_DECODERS = {
    "F32": "plain",
    "F16": "plain",
    "BF16": "plain",
    "Q4_0": "legacy",
    "Q4_1": "legacy",
    "Q5_0": "legacy",
    "Q5_1": "legacy",
    "Q8_0": "legacy",
    "Q8_1": "legacy",
    "Q2_K": "k_quants",
    "Q3_K": "k_quants",
    "Q4_K": "k_quants",
    "Q5_K": "k_quants",
    "Q6_K": "k_quants",
    "Q8_K": "k_quants",
    "IQ1_S": "iq",
    "IQ1_M": "iq",
    "IQ2_XXS": "iq",
    "IQ2_XS": "iq",
    "IQ2_S": "iq",
    "IQ3_XXS": "iq",
    "IQ3_S": "iq",
    "IQ4_NL": "iq",
    "IQ4_XS": "iq",
    "Q1_0": "ternary",
    "TQ1_0": "ternary",
    "TQ2_0": "ternary",
    "MXFP4": "fp4",
    "NVFP4": "fp4",
}

BLOCK_TYPES: dict[int, BlockType] = {
    int(ggml_type): BlockType(
        ggml_type,
        block_size,
        type_size,
        _DTYPES.get(ggml_type),
        _DECODERS.get(ggml_type.name),
    )
    for ggml_type, (block_size, type_size) in GGML_QUANT_SIZES.items()
}
"""Every type by its id in the file. Sizes are gguf-py's, so a newer gguf brings newer types."""


def block_type(
    type_id: int,
    *,
    file: str | os.PathLike[str] | None = None,
    tensor: str | None = None,
) -> BlockType:
    """The block type with this id in a file.

    Raises:
        GGUFError: no such type; names ``file`` and ``tensor`` and lists the known types.
    """
    try:
        return BLOCK_TYPES[type_id]
    except KeyError:
        raise GGUFError(
            "unknown block type",
            file=file,
            tensor=tensor,
            found=f"type {type_id}",
            expected="one of " + ", ".join(f"{t.name}={i}" for i, t in BLOCK_TYPES.items()),
            hint="Quantize the model to one of these, or upgrade the gguf package.",
        ) from None
