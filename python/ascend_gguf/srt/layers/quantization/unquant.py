"""Routers in full precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.layers.quantization.unquant import UnquantizedLinearMethod
from torch.nn import Parameter


class Float32LinearMethod(UnquantizedLinearMethod):
    """A linear layer computed in float32, whatever the dtype of the model: input and result too."""

    def apply(
        self, layer: torch.nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        return F.linear(x.float(), layer.weight, None if bias is None else bias.float())

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Nothing: packing for a matrix unit would round to bfloat16."""


def keep_float32(layer: torch.nn.Module) -> None:
    """Hold and apply an unquantized :class:`ReplicatedLinear` in float32; others stay as they are.

    A file keeps its routers in F32, and llama.cpp computes them so: among logits a few bits apart,
    rounding them to bfloat16 sends tokens to other experts.  Call before loading.
    """
    if (
        type(layer) is not ReplicatedLinear
        or type(layer.quant_method) is not UnquantizedLinearMethod
    ):
        return
    weight = Parameter(layer.weight.data.float(), requires_grad=False)
    vars(weight).update(vars(layer.weight))
    layer.weight = weight
    layer.quant_method = Float32LinearMethod()
