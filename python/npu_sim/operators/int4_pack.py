"""npu_convert_weight_to_int4pack: int32 values -8..7 to int32 holding eight each, low nibble first,
along the last dimension.

torch_npu packs on the host, without an aclnn call and without looking at values or at more than the
first matrix of a 3-D input; the simulation takes the place of the torch operator (see
`register_torch_ops`) and refuses what would come out wrong.
"""

from __future__ import annotations

import torch

from .rules import I32, OperatorMissing, Rules
from .view import int4_pack, view

DOC = "torch_npu 2.13.0 documentation of npu_convert_weight_to_int4pack"


def convert_weight_to_int4pack(weight, inner_k_tiles: int = 0) -> torch.Tensor:
    """(rows, columns) int32, columns a multiple of 8, to (rows, columns / 8) int32."""
    w = view(weight)
    rule = Rules("npu_convert_weight_to_int4pack", DOC)
    if (
        w.nz
    ):  # documented, with an output that is again ND: how a FRACTAL_NZ pack lies in memory is not
        raise OperatorMissing("npu_convert_weight_to_int4pack", "FRACTAL_NZ input")
    rule.dtype("weight", w.t, I32)
    rule.ndim("weight", w.t, 2)
    rule.not_empty("weight", w.t)
    rule.contiguous("weight", w.t)
    rule.multiple("weight", "the last dimension", w.t.shape[-1], 8)
    rule.values("weight", w.t, -8, 7)
    rule.equal("inner_k_tiles", "it", inner_k_tiles, 0)
    return int4_pack(w.t)


TORCH_OPS = {"npu::npu_convert_weight_to_int4pack": convert_weight_to_int4pack}
