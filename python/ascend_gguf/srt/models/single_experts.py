"""Experts one by one, for models whose own loaders know only of all of a layer's at once."""

from __future__ import annotations

import re
from typing import Any

import torch
from sglang.srt.layers.moe.ep_moe.layer import get_moe_impl_class
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.topk import TopK
from torch import nn

from ascend_gguf.srt.models.direct_loading import load_first

#: Projection -> (the parameter it is part of, the engine's name of the part).
_PARTS = {"gate": ("w13", "w1"), "up": ("w13", "w3"), "down": ("w2", "w2")}

_NAME = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.(\w+)")


def stacked_experts(
    layer_id: int, sizes: dict[str, int], quant_config: Any, prefix: str, **routing: Any
) -> tuple[TopK, FusedMoE]:
    """Experts that may be packed, in place of dense matrices, and what chooses among them.

    Args:
        sizes: ``num_experts``, ``top_k``, ``hidden_size`` and ``intermediate_size``.
        prefix: the name of the experts in the model.
        routing: options of ``TopK``.
    """
    experts = get_moe_impl_class(quant_config)(
        layer_id=layer_id, quant_config=quant_config, prefix=prefix, **sizes
    )
    topk = TopK(top_k=sizes["top_k"], layer_id=layer_id, **routing)
    if hasattr(topk, "bind_runner_backend"):  # from SGLang 0.5.23 on
        topk.bind_runner_backend(experts.runner_backend)
    return topk, experts


def load_experts_one_by_one(model: Any, config: Any) -> None:
    """A repair: load ``X.experts.E.{gate,up,down}_proj.*`` as they come.

    The model's own ``load_weights`` knows of none, or has gate and up in one tensor of all experts.
    """
    load_first(model, _take)


def _take(model: nn.Module, name: str, data: torch.Tensor) -> bool:
    match = _NAME.fullmatch(name)
    if match is None:
        return False
    module, expert, projection, kind = match.groups()
    prefix, shard = _PARTS[projection]
    try:
        experts = model.get_submodule(module)
    except AttributeError:
        return True  # on another stage of the pipeline
    if kind == "bias":
        _load_bias(experts, int(expert), prefix, shard, data)
    else:
        parameter = getattr(experts, f"{prefix}_{kind}")
        experts.weight_loader(parameter, data, name, shard_id=shard, expert_id=int(expert))
    return True


def _load_bias(experts: FusedMoE, expert: int, prefix: str, shard: str, bias: torch.Tensor) -> None:
    """This rank's part of ``[ffn]`` (gate, up) or ``[hidden]`` (down), which one rank adds."""
    local = experts._map_global_expert_id_to_local_expert_id(expert)
    if local < 0:
        return
    place: Any = getattr(experts, f"{prefix}_weight_bias").data[local]
    if shard == "w2":
        place.copy_(bias) if experts.moe_tp_rank == 0 else place.zero_()
        return
    half = place.shape[0] // 2
    part = bias[experts.moe_tp_rank * half :][:half]  # less, or nothing, where widths are padded
    place = place.narrow(0, half if shard == "w3" else 0, half).zero_()
    place[: len(part)].copy_(part)
