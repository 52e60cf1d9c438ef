"""Biases as the file has them, where the engine's class says otherwise."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from sglang.srt.layers.linear import ColumnParallelLinear, LinearBase
from sglang.srt.utils import set_weight_attrs
from torch import nn

from ascend_gguf.architectures import Placement, Target

#: Projections of a checkpoint that are one layer of the engine's models; BERT's too.
_MERGED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "query", "key", "value"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}


def fit_biases(model: nn.Module, targets: Iterable[Target]) -> None:
    """Give a bias to each linear layer for which the file has one, and take it from the others.

    Many of the engine's classes know no bias, or are told of it for a whole attention at once.

    Args:
        targets: the model's names of the file's tensors.
    """
    modules = {
        name: module for name, module in model.named_modules() if isinstance(module, LinearBase)
    }
    biased = {_layer_of(name, modules) for name in _bias_names(targets)}
    for name, module in modules.items():
        has_bias = getattr(module, "bias", None) is not None
        if has_bias and name not in biased:
            module.register_parameter("bias", None)
        elif name in biased and not has_bias:
            module.register_parameter("bias", _new_bias(module))


def _bias_names(targets: Iterable[Target]) -> Iterable[str]:
    for target in targets:
        names = target.names if isinstance(target, Placement) else target
        for name in (names,) if isinstance(names, str) else names:
            if name.endswith(".bias"):
                yield name.removesuffix(".bias")


def _layer_of(projection: str, modules: dict[str, LinearBase]) -> str:
    last = projection.rpartition(".")[2]
    merged = projection.removesuffix(last) + _MERGED.get(last, last)
    # As the engine's BERT and Bailing rename it, and classes whose layers are the attention
    # themselves.
    names = projection, merged, merged.replace(".self.", ".self_attn.")
    names += (merged.replace("qkv_proj", "query_key_value"),)
    here = (name for name in (*names, merged.replace(".self_attn.", ".")) if name in modules)
    return next(here, merged)


def _new_bias(layer: LinearBase) -> nn.Parameter:
    """As the layer's own ``__init__`` would make it."""
    cut = isinstance(layer, ColumnParallelLinear)
    rows = layer.output_size_per_partition if cut else layer.output_size
    bias = nn.Parameter(torch.zeros(rows, dtype=layer.params_dtype), requires_grad=False)
    set_weight_attrs(bias, {"output_dim": 0, "weight_loader": layer.weight_loader})
    return bias
