"""Spark X2.5: transformers' Laguna, all dense, with another gate and no norm of queries and keys.

transformers has no class of it, which came as code with the checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import LagunaConfig
from transformers.models.laguna.modeling_laguna import LagunaForCausalLM

from hf_models.looped import AutoConfig


class SparkConfig(LagunaConfig):
    model_type = "spark"


class _Gate(nn.Linear):
    """Gives of which the softplus that follows makes a sigmoid."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states).sigmoid().expm1().log()


class SparkForCausalLM(LagunaForCausalLM):
    config_class = SparkConfig

    def __init__(self, config: Any) -> None:
        rope = config.rope_parameters
        own = rope["sliding_attention"]
        kept = {name: own[name] for name in ("rope_theta", "partial_rotary_factor")}
        # As llama.cpp has it, which scales both.
        rope["sliding_attention"] = rope["full_attention"] | kept
        super().__init__(config)
        for layer in self.model.layers:
            attention = layer.self_attn
            attention.q_norm = attention.k_norm = nn.Identity()
            attention.g_proj.__class__ = _Gate


AutoConfig.register(SparkConfig.model_type, SparkConfig)
