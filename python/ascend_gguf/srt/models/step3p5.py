"""Step 3.5 and 3.7 Flash: sizes and RoPE by the type of a layer, and loading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ascend_gguf.srt.models.rotary import set_rotary_of_type
from ascend_gguf.srt.models.single_experts import load_experts_one_by_one
from ascend_gguf.srt.models.windows import include_token
from ascend_gguf.srt.overrides import override_methods


def name_sizes(config: Any) -> None:
    """What the engine's class asks for beside the configuration; RoPE is repaired afterwards."""
    layers = config.num_hidden_layers
    sparse = [i for i, kind in enumerate(config.mlp_layer_types) if kind == "sparse"]
    config.moe_layers_enum = ",".join(map(str, sparse or [layers]))
    config.yarn_only_types = []
    config.partial_rotary_factors = [1.0] * layers
    config.rope_theta = [1e4] * layers


def repair_attention(attention: Any, config: Any) -> None:
    """``Step3p5Attention``: RoPE of its type of layer, and a window that includes the token."""
    set_rotary_of_type(attention, config)
    include_token(attention, config)


def repair_loading(model: Any, config: Any) -> None:
    """``Step3p5ForCausalLM``: experts are loaded one by one."""
    override_methods(model, load_weights=_load_weights)
    load_experts_one_by_one(model, config)


def _load_weights(
    original: Callable,
    self: torch.nn.Module,
    weights: Iterable[tuple[str, torch.Tensor]],
    **kwargs: Any,
) -> None:
    def others() -> Iterator[tuple[str, torch.nn.Parameter]]:
        # The engine looks whether it has loaded everything; our loader does so as well.
        named = type(self).named_parameters(self)
        return ((name, parameter) for name, parameter in named if ".experts." not in name)

    vars(self)["named_parameters"] = others
    try:
        return original(self, weights, **kwargs)
    finally:
        del vars(self)["named_parameters"]
