"""Eight bits a weight, in groups of 16, for operators of four bits in groups of 32."""

from __future__ import annotations

import torch

from ascend_gguf.npu.groups import Packing
from ascend_gguf.npu.int4 import nibbles
from ascend_gguf.npu.row_groups import RowGroups

#: A code of 8 bits is ``16 high + low``; this covers -136 to 119.
PLANES = Packing(8, -136, 119, group=16, planes=True)


class NibblePlanes(RowGroups):
    """A matrix as ``(high + offset) * scale + (low + offset) * scale / 16``, both from -8 to 7.

    To the operator it is a matrix of four bits with twice the columns, and its input is twice as
    wide (:func:`doubled`).  So types with a scale for 16 weights are exact in operators with groups
    of 32, and 8 bits in groups fit operators that have groups for 4 bits alone.

    ``packed``: int32 ``[rows, 2 * cols / 8]``, eight codes each, the first in the lowest bits: of
    16 weights the high codes, then the low ones.
    ``scale``: ``dtype [rows, cols / 16]``.
    ``offset``: as ``scale``; absent where all are 0.
    """

    name = "planes"
    packing = PLANES
    packed_dtype = torch.int32

    def to(self, device: torch.device) -> NibblePlanes:
        super().to(device)
        #: For :func:`doubled`.
        self.factors = plane_factors(self.dtype, device)
        return self

    def codes(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return nibbles(packed, dtype)

    def decoded(self, rows: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        values = self.codes(rows["packed"], dtype).unflatten(-1, (-1, 32))
        if "offset" in rows:
            values = values + rows["offset"].unsqueeze(-1)
        values = values.unflatten(-1, (2, 16))
        return (merged(values, -2) * rows["scale"].unsqueeze(-1)).flatten(1)


def merged(values: torch.Tensor, dim: int) -> torch.Tensor:
    """``[..., 2, ...]``, high and low codes along a dimension, to ``high + low / 16``."""
    high, low = values.unbind(dim)
    return high + low / 16


def doubled(x: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """The input for planes: ``[n, cols]`` to ``[n, 2 * cols]``, each 16 values and a 16th of them.

    ``factors``: :func:`plane_factors` for the dtype and device of ``x``.
    """
    return (x.unflatten(-1, (-1, 1, 16)) * factors).flatten(-3)


def plane_factors(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """What the inputs of high and of low codes are multiplied with: ``[2, 1]``."""
    return torch.tensor([[1.0], [0.0625]], dtype=dtype, device="cpu").to(device)
