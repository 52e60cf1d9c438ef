"""Four bits a weight: Q4_0, Q4_1, Q4_K, IQ3_S and the ternary types."""

from __future__ import annotations

import torch

from ascend_gguf.npu.groups import Packing
from ascend_gguf.npu.row_groups import RowGroups


class Int4(RowGroups):
    """A matrix as ``(code + offset) * scale``, codes from -8 to 7.

    ``packed``: int32 ``[rows, cols / 8]``, eight codes each, the first in the lowest bits.
    ``scale``: ``dtype [rows, cols / 32]``.
    ``offset``: as ``scale``; absent where all are 0.
    """

    name = "int4"
    packing = Packing(4, -8, 7)
    packed_dtype = torch.int32

    def codes(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return nibbles(packed, dtype)


def nibbles(packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """int32 ``[..., n]``, eight codes each, to ``dtype [..., 8 * n]``."""
    # In floats, all exact: an NPU leaves shifts to the host.
    both = packed.view(torch.int8).to(dtype)
    high = torch.floor_divide(both, 16)
    low = torch.sub(both, torch.floor_divide(both + 8, 16), alpha=16)
    return torch.stack((low, high), dim=-1).flatten(-2)
