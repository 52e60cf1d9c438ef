"""Experts one by one, for models whose own loaders know only of all of a layer's at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE

from ascend_gguf.srt.overrides import override_methods

#: Projection -> (the parameter it is part of, the engine's name of the part).
_PARTS = {"gate": ("w13", "w1"), "up": ("w13", "w3"), "down": ("w2", "w2")}

_NAME = re.compile(r"(.+\.experts)\.(\d+)\.(gate|up|down)_proj\.(\w+)")


def load_experts_one_by_one(model: Any, config: Any) -> None:
    """A repair: the model loads single experts beside what its own ``load_weights`` takes."""
    override_methods(model, load_weights=_load_weights)


def _load_weights(
    original: Callable, self: Any, weights: Iterable[tuple[str, torch.Tensor]]
) -> Any:
    return original(self, load_single_experts(self, weights))


def bind_runner(topk: Any, experts: FusedMoE) -> None:
    """Tell a router what runs the experts, from SGLang 0.5.23 on."""
    if hasattr(topk, "bind_runner_backend"):
        topk.bind_runner_backend(experts.runner_backend)


def load_single_experts(
    model: torch.nn.Module, weights: Iterable[tuple[str, torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Load ``X.experts.E.{gate,up,down}_proj.*`` as they come, and yield whatever else there is."""
    modules = dict(model.named_modules())
    for name, data in weights:
        match = _NAME.fullmatch(name)
        if match is None:
            yield name, data
            continue
        module, expert, projection, kind = match.groups()
        experts = modules.get(module)
        if experts is None:
            continue  # on another stage of the pipeline
        prefix, shard = _PARTS[projection]
        if kind == "bias":
            _load_bias(experts, int(expert), prefix, shard, data)
        else:
            parameter = getattr(experts, f"{prefix}_{kind}")
            experts.weight_loader(parameter, data, name, shard_id=shard, expert_id=int(expert))


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
