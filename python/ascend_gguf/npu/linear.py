"""Packed weights on an Ascend NPU: linear layers, and rows of an embedding.

Source of the rules: torch_npu's documentation of ``npu_weight_quant_batchmatmul``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ascend_gguf.npu.groups import GROUP
from ascend_gguf.npu.int4 import Int4
from ascend_gguf.npu.int8 import Int8, NearInt8
from ascend_gguf.npu.nibble_planes import NibblePlanes, doubled
from ascend_gguf.npu.row_groups import RowGroups
from ascend_gguf.weights.linear_kernel import LinearKernel


class NPULinear(LinearKernel[RowGroups]):
    """``npu_weight_quant_batchmatmul`` with the transposed view of weights stored by rows."""

    layouts: tuple[type[RowGroups], ...] = (Int4, Int8, NearInt8, NibblePlanes)

    def linear(
        self, x: torch.Tensor, weight: RowGroups, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As of the base class; ``bias`` best is float32 where ``x`` is bfloat16."""
        if x.dtype != weight.dtype:  # an output matrix asked for in float32
            return self.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        shape = (*x.shape[:-1], weight.shape[0])
        if not len(rows):
            return x.new_empty(shape)
        if isinstance(weight, NibblePlanes):
            rows = doubled(rows, weight.factors)
        if bias is not None and bias.dtype == torch.bfloat16:
            bias = bias.float()
        parts = [
            torch.ops.npu.npu_weight_quant_batchmatmul(
                rows,
                tensors["packed"].t(),
                antiquant_scale=tensors["scale"].t(),
                antiquant_offset=tensors["offset"].t() if "offset" in tensors else None,
                antiquant_group_size=GROUP,
                bias=None if bias is None else bias[part],
            )
            for part, tensors in weight.parts
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).view(shape)

    def rows(self, weight: RowGroups, ids: torch.Tensor) -> torch.Tensor:
        chosen = ids.reshape(-1)
        (part, tensors), *others = weight.parts
        found = _decoded(weight, part, tensors, chosen)
        for part, tensors in others:
            values = _decoded(weight, part, tensors, chosen)
            found = torch.where((chosen >= part.start).unsqueeze(-1), values, found)
        return found.view(*ids.shape, weight.shape[1])


def _decoded(
    weight: RowGroups, part: slice, tensors: Mapping[str, torch.Tensor], chosen: torch.Tensor
) -> torch.Tensor:
    """The chosen rows of a part of the weight; any values for those of another part."""
    own = chosen - part.start if part.start else chosen
    if len(weight.parts) > 1:
        own = own.clamp(0, part.stop - part.start - 1)
    gathered = {name: tensor.index_select(0, own) for name, tensor in tensors.items()}
    return weight.decoded(gathered, weight.dtype)


class NPUExactLinear(NPULinear):
    """With exact layouts alone; some take one more operator."""

    layouts = (Int4, Int8, NibblePlanes)
