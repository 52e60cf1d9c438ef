"""Packed weights on an Ascend NPU: linear layers, and rows of an embedding.

Source of the rules: torch_npu's documentation of ``npu_weight_quant_batchmatmul``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ascend_gguf.npu.codes import doubled
from ascend_gguf.npu.int4 import Int4, Int4Rows
from ascend_gguf.npu.int8 import Int8, Int8Rows, RequantizedInt8
from ascend_gguf.npu.nibble_planes import NibblePlanes, PlanesRows, WidePlanes
from ascend_gguf.npu.packed_groups import PackedGroups
from ascend_gguf.npu.row_groups import RowGroups
from ascend_gguf.weights.linear_kernel import EmbeddingKernel, LinearKernel


class NPULinear(LinearKernel[PackedGroups]):
    """``npu_weight_quant_batchmatmul``.

    With its layouts weights are contiguous and not transposed, as CANN recommends for weights in
    groups.  By rows they are transposed views, as an embedding is that is the output matrix too.

    Args:
        wide_planes: whether weights of 8 bits are :class:`.WidePlanes`, for one operator more.
    """

    layouts: tuple[type[PackedGroups], ...] = (Int4, Int8, RequantizedInt8, NibblePlanes)
    others: tuple[type[PackedGroups], ...] = (WidePlanes, Int4Rows, Int8Rows, PlanesRows)

    def __init__(self, wide_planes: bool = False) -> None:
        if wide_planes:
            first, *others = self.layouts
            self.layouts = (first, WidePlanes, *others)

    def linear(
        self, x: torch.Tensor, weight: PackedGroups, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As of the base class; ``bias`` best is float32 where ``x`` is bfloat16."""
        if x.dtype != weight.dtype:  # an output matrix asked for in float32
            return self.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
        rows = x.reshape(-1, x.shape[-1])
        shape = (*x.shape[:-1], weight.shape[0])
        if not len(rows):
            return x.new_empty(shape)
        if weight.packing.planes:
            rows = doubled(rows, weight.factors)
        if bias is not None and bias.dtype == torch.bfloat16:
            bias = bias.float()
        parts = [
            torch.ops.npu.npu_weight_quant_batchmatmul(
                rows,
                part.packed,
                antiquant_scale=part.scale,
                antiquant_offset=part.offset,
                antiquant_group_size=weight.packing.operator_group,
                bias=None if bias is None else bias[part.rows],
            )
            for part in weight.operands
        ]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)).view(shape)


class NPUEmbedding(NPULinear, EmbeddingKernel[RowGroups]):
    """Rows of weights by rows, decoded; and products, where they are the output matrix too."""

    layouts = (Int4Rows, Int8Rows, PlanesRows)
    others = ()

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
    if part.stop - part.start < weight.shape[0]:
        own = own.clamp(0, part.stop - part.start - 1)
    gathered = {name: tensor.index_select(0, own) for name, tensor in tensors.items()}
    return weight.decoded_rows(gathered, weight.dtype)


class NPUExactLinear(NPULinear):
    """With exact layouts alone; some take one more operator."""

    layouts = (Int4, Int8, NibblePlanes)
