"""Eight bits a weight, in groups of 32."""

from __future__ import annotations

import torch

from ascend_gguf.npu.groups import Packing
from ascend_gguf.npu.row_groups import RowGroups


class Int8(RowGroups):
    """A matrix as ``(code + offset) * scale``, codes from -128 to 127.

    ``packed``: int8 ``[rows, cols]``.
    ``scale``: ``dtype [rows, cols / 32]``.
    ``offset``: as ``scale``; absent where all are 0.
    """

    name = "int8"
    packing = Packing(8, -128, 127)
    packed_dtype = torch.int8

    def codes(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return packed.to(dtype)


class NearInt8(Int8):
    """As :class:`Int8`, also for types with a scale for 16 weights: those get the nearest codes.

    docs/weight_layouts.md has the error that this adds.
    """

    name = "int8, nearly"
    packing = Packing(8, -128, 127, nearly=True)
