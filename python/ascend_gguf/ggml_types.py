"""The table of GGML block types: everything the project knows about a type is one row of it.

A GGUF tensor is stored row by row; a row is a whole number of blocks, and a block packs
``block_size`` weights into ``type_size`` bytes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES

from ascend_gguf.errors import GGUFError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class CodeRange:
    """The whole numbers that a quantized type stores.

    A weight is ``scale * code``, plus an offset if :attr:`has_offset`.  Which layouts of an NPU can
    hold a type (``npu.groups.Packing``) and how the CPU multiplies with it follow from its codes.

    Attributes:
        low, high: the least and the greatest code.
        step: the codes are ``low``, ``low + step`` and so on.
        group: how many weights in a row share scale and offset at least: 16 or 32.
    """

    low: int
    high: int
    step: int = 1
    has_offset: bool = False
    group: int = 32


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor's weights are packed.

    Attributes:
        ggml_type: the type's id in the file, an ``IntEnum``.
        block_size: weights in a block; 1 if the type is not quantized.
        type_size: bytes in a block.
        decoder: the module of :mod:`ascend_gguf.decoders` with the function that decodes a block,
            which is named like the type in lower case; None if the type cannot be decoded.
        codes: the whole numbers that a quantized type stores.
        dtype_name: torch's name of a type that is not quantized; None for a quantized one.
    """

    ggml_type: GGMLQuantizationType
    block_size: int
    type_size: int
    decoder: str | None = None
    codes: CodeRange | None = None
    dtype_name: str | None = None

    @property
    def name(self) -> str:
        """The name ggml gives the type, such as ``Q4_K``."""
        return self.ggml_type.name

    @property
    def is_quantized(self) -> bool:
        """False for floats (F32, F16, BF16, F64) and integers, which have a dtype of torch."""
        return self.dtype_name is None

    @property
    def dtype(self) -> torch.dtype | None:
        """torch's dtype of a type that is not quantized; None for a quantized one."""
        import torch  # takes a second, which who only looks at a file need not wait for

        return None if self.dtype_name is None else getattr(torch, self.dtype_name)

    def row_bytes(
        self, cols: int, *, file: str | os.PathLike[str] | None = None, tensor: str | None = None
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

    def row_cols(self, nbytes: int) -> int:
        """Weights in a row of ``nbytes`` bytes: the inverse of :meth:`row_bytes`.

        Raises:
            GGUFError: the row is not a whole number of blocks.
        """
        if nbytes % self.type_size:
            raise GGUFError(
                f"a row is not a whole number of {self.name} blocks",
                found=f"{nbytes} bytes",
                expected=f"a multiple of {self.type_size}",
            )
        return nbytes // self.type_size * self.block_size


_SIGNED_BYTE = CodeRange(-128, 127)
_IQ4 = CodeRange(-127, 113)

# What gguf-py does not know: decoder, codes and perhaps dtype's name of a :class:`BlockType`.
# Names, not values: a gguf-py older than a type lacks it.
_TYPES: dict[str, tuple[Any, ...]] = {
    "F32": ("plain", None, "float32"),
    "F16": ("plain", None, "float16"),
    "BF16": ("plain", None, "bfloat16"),
    "F64": (None, None, "float64"),
    "I8": (None, None, "int8"),
    "I16": (None, None, "int16"),
    "I32": (None, None, "int32"),
    "I64": (None, None, "int64"),
    "Q4_0": ("legacy", CodeRange(-8, 7)),
    "Q4_1": ("legacy", CodeRange(0, 15, has_offset=True)),
    "Q5_0": ("legacy", CodeRange(-16, 15)),
    "Q5_1": ("legacy", CodeRange(0, 31, has_offset=True)),
    "Q8_0": ("legacy", _SIGNED_BYTE),
    "Q2_K": ("k_quants", CodeRange(0, 3, has_offset=True, group=16)),
    "Q3_K": ("k_quants", CodeRange(-4, 3, group=16)),
    "Q4_K": ("k_quants", CodeRange(0, 15, has_offset=True)),
    "Q5_K": ("k_quants", CodeRange(0, 31, has_offset=True)),
    "Q6_K": ("k_quants", CodeRange(-32, 31, group=16)),
    "IQ1_S": ("iq", CodeRange(-1, 1, has_offset=True)),
    "IQ1_M": ("iq", CodeRange(-9, 9, group=16)),
    "IQ2_XXS": ("iq", CodeRange(-43, 43)),
    "IQ2_XS": ("iq", CodeRange(-43, 43, group=16)),
    "IQ2_S": ("iq", CodeRange(-43, 43, group=16)),
    "IQ3_XXS": ("iq", CodeRange(-62, 62)),
    "IQ3_S": ("iq", CodeRange(-15, 15, step=2)),
    "IQ4_NL": ("iq", _IQ4),
    "IQ4_XS": ("iq", _IQ4),
    "Q1_0": ("ternary", CodeRange(-1, 1)),
    "TQ1_0": ("ternary", CodeRange(-1, 1)),
    "TQ2_0": ("ternary", CodeRange(-1, 2)),
    "MXFP4": ("fp4", CodeRange(-12, 12)),
    "NVFP4": ("fp4", CodeRange(-12, 12, group=16)),
}

BLOCK_TYPES: dict[int, BlockType] = {
    int(ggml_type): BlockType(ggml_type, *sizes, *_TYPES.get(ggml_type.name, ()))
    for ggml_type, sizes in GGML_QUANT_SIZES.items()
}
"""Every type by its id in the file. Sizes are gguf-py's, so a newer gguf brings newer types."""


#: Types that files of other programs, or of another time, have: id -> name.
_REMOVED = {
    **{4: "Q4_2", 5: "Q4_3"},
    **{31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8"},
    **{36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8"},
}
_NEWER = {42: "Q2_0"}
_IK_LLAMA = {
    **{133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 137: "IQ2_K", 138: "IQ3_K", 139: "IQ4_K"},
    **{140: "IQ5_K", 141: "IQ6_K", 142: "IQ2_TN", 143: "IQ1_TN", 144: "IQ4_KS", 145: "IQ2_KS"},
    **{146: "IQ4_KSS", 152: "IQ5_KS", 153: "IQ2_KT", 154: "IQ3_KT", 155: "IQ4_KT"},
    **{156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT"},
    # Rows interleaved: the type of the id that is 200 less, where that is llama.cpp's.
    **dict.fromkeys((*range(97, 100), *range(200, 400)), "an interleaved type (_R4, _R8)"),
}
_OTHER_FILE = "Use a file of the model in a type of llama.cpp, such as Q4_K_M or Q8_0."


def _stranger(type_id: int) -> tuple[str, str]:
    """What is known of a type that is not in the table, and what to do."""
    if type_id in _REMOVED:
        name, hint = _REMOVED[type_id], "Use the model's Q4_0 file, or quantize the model again."
        if name.startswith("IQ4_NL"):
            hint = "Use the model's IQ4_NL file, or quantize the model again."
        return f"{name}, which llama.cpp has removed", hint
    if type_id in _IK_LLAMA:
        return f"{_IK_LLAMA[type_id]} of ik_llama.cpp", _OTHER_FILE
    return _NEWER.get(type_id, "which is unknown"), _OTHER_FILE


def block_type(
    type_id: int, *, file: str | os.PathLike[str] | None = None, tensor: str | None = None
) -> BlockType:
    """The block type with this id in a file.

    Raises:
        GGUFError: no such type; names ``file`` and ``tensor`` and lists the known types.
    """
    try:
        return BLOCK_TYPES[type_id]
    except KeyError:
        name, hint = _stranger(type_id)
        raise GGUFError(
            "unknown block type",
            file=file,
            tensor=tensor,
            found=f"type {type_id}, {name}",
            expected="one of " + ", ".join(f"{t.name}={i}" for i, t in BLOCK_TYPES.items()),
            hint=hint,
        ) from None
