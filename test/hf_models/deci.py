"""DeciLM and Llama-Nemotron: transformers' Llama with layers of different sizes.

transformers has no class of theirs, which came as code with the checkpoints; their names are the
same here.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm


class DeciLMConfig(LlamaConfig):
    model_type = "nemotron-nas"


class _Matrix(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(size, size, bias=False)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return self.linear_attn(hidden_states), None


class _Layer(nn.Module):
    def __init__(self, config: Any, number: int, block: Mapping[str, Any]) -> None:
        super().__init__()
        self.self_attn, self.mlp = None, None
        attention, own = block["attention"], copy(config)
        if group := attention["n_heads_in_group"]:
            own.num_key_value_heads = config.num_attention_heads // group
            self.self_attn = LlamaAttention(own, number)
        elif attention["replace_with_linear"]:
            self.self_attn = _Matrix(config.hidden_size)
        if self.self_attn is not None:
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        if multiple := block["ffn"]["ffn_mult"]:
            if getattr(config, "block_configs", None):
                own.intermediate_size = ffn_width(multiple, config.hidden_size)
            self.mlp = LlamaMLP(own)
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if self.self_attn is not None:
            normed = self.input_layernorm(hidden_states)
            hidden_states = hidden_states + self.self_attn(hidden_states=normed, **kwargs)[0]
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class DeciLMForCausalLM(LlamaForCausalLM):
    config_class = DeciLMConfig

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        layers = (_Layer(config, i, block) for i, block in enumerate(blocks_of(config)))
        self.model.layers = nn.ModuleList(layers)


AutoConfig.register(DeciLMConfig.model_type, DeciLMConfig)


def ffn_width(multiple: float, hidden_size: int) -> int:
    """Two thirds of a multiple of the hidden size, rounded up to a multiple of 256."""
    return -(-int(2 * multiple * hidden_size / 3) // 256) * 256


def blocks_of(config: Any) -> list[dict[str, Any]]:
    """What each layer is; of DeciLM 7B by its numbers of heads."""
    if blocks := getattr(config, "block_configs", None):
        return blocks
    widths = {"ffn_mult": 1.5 * config.intermediate_size / config.hidden_size}
    return [
        {"attention": {"n_heads_in_group": config.num_attention_heads // heads}, "ffn": widths}
        for heads in config.num_key_value_heads_per_layer
    ]
