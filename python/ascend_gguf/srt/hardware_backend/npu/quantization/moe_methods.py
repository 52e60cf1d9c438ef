"""Experts in packed layouts, for the engine's own runner on Ascend NPUs."""

from __future__ import annotations

from types import SimpleNamespace

# The engine's modules import each other: this one has to be first.
import sglang.srt.layers.quantization.unquant  # noqa: F401
import torch
from sglang.srt.hardware_backend.npu.quantization.moe_methods import NPUWNA16Int4MoEMethod

from ascend_gguf.npu.codes import doubled
from ascend_gguf.npu.experts import Grouped


class NPUGGUFMoEMethod(NPUWNA16Int4MoEMethod):
    """Gate and up projections, or down projections, of a layer's experts: the engine's own call.

    Args:
        weight: what to multiply with, on the device.
        bias: ``[experts, N]``, if any.
    """

    def __init__(self, weight: Grouped, bias: torch.Tensor | None) -> None:
        super().__init__()
        self._factors = weight.factors if weight.packing.planes else None
        self._call = {
            "weight": weight.tensors["packed"],
            "weight_scale": weight.tensors["scale"],
            "weight_offset": weight.offset,
            "weight_bias": bias,
        }

    def product(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """``x [n, K]``, sorted by expert, to ``[n, N]``; ``counts``: int64, rows of each expert."""
        return self.apply(None, x, counts, None, x.dtype, "w13", group_list_type=1)

    def apply(
        self,
        quant_info: torch.nn.Module,
        hidden_states: torch.Tensor,
        expert_tokens: torch.Tensor,
        pertoken_scale: torch.Tensor,
        output_dtype: torch.dtype,
        weight_prefix: str,
        group_list_type: int,
    ) -> torch.Tensor:
        if self._factors is not None:
            hidden_states = doubled(hidden_states, self._factors)
        weights = {f"{weight_prefix}_{name}": value for name, value in self._call.items()}
        return super().apply(
            SimpleNamespace(**weights),
            hidden_states,
            expert_tokens,
            pertoken_scale,
            output_dtype,
            weight_prefix,
            group_list_type,
        )
