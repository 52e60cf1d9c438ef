"""Packed weights on an Ascend NPU: products, and rows of an embedding.

Source of the rules: torch_npu's documentation of ``npu_weight_quant_batchmatmul``.
"""

from __future__ import annotations

import torch

from ascend_gguf.forms import Int4, Int8, NearInt8, Planes
from ascend_gguf.forms.groups import GROUP
from ascend_gguf.forms.planes import doubled
from ascend_gguf.forms.row_groups import RowGroups
from ascend_gguf.kernels.base import LinearKernel


class NPULinear(LinearKernel):
    """``npu_weight_quant_batchmatmul`` with the transposed view of weights stored by rows."""

    forms = (Int4, Int8, NearInt8, Planes)

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
        if isinstance(weight, Planes):
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
        found = None
        for part, tensors in weight.parts:
            own = chosen - part.start if part.start else chosen
            if len(weight.parts) > 1:
                own = own.clamp(0, part.stop - part.start - 1)
            gathered = {name: tensor.index_select(0, own) for name, tensor in tensors.items()}
            values = weight.decoded(gathered, weight.dtype)
            is_here = (chosen >= part.start).unsqueeze(-1)
            found = values if found is None else torch.where(is_here, values, found)
        return found.view(*ids.shape, weight.shape[1])


class NPUExactLinear(NPULinear):
    """Without forms that are only nearly right, at the price of one more operator for some."""

    forms = (Int4, Int8, Planes)


def has_operators() -> bool:
    """Whether this NPU multiplies with weights in groups: all do but the 310P."""
    return not torch.npu.get_device_name().startswith("Ascend310P")
