"""Grok 1 and 2: transformers' Gemma 2 with experts, and factors of its own.

transformers has no class of it.  Experts are as in the code that xAI published: weights are the
softmax of all, and not divided by the sum of the best.
"""

from __future__ import annotations

import math
from copy import copy
from typing import Any

import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM
from transformers.models.gemma2.modeling_gemma2 import Gemma2Attention, Gemma2MLP

from hf_models.spark import AutoConfig


class GrokConfig(Gemma2Config):
    model_type = "grok_by_gemma2"


class _Network(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config, own = config, copy(config)
        own.intermediate_size = config.moe_intermediate_size or config.intermediate_size
        self.gate = nn.Linear(config.hidden_size, config.num_local_experts, bias=False)
        self.experts = nn.ModuleList(Gemma2MLP(own) for _ in range(config.num_local_experts))
        self.dense = Gemma2MLP(config) if config.residual_moe else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        cap = self.config.router_logit_softcapping
        shares = (cap * torch.tanh(self.gate(x) / cap)).softmax(-1)
        least = shares.topk(self.config.num_experts_per_tok).values[..., -1:]
        shares = shares * (shares >= least)
        found = sum(shares[..., i : i + 1] * one(x) for i, one in enumerate(self.experts))
        return found if self.dense is None else (found + self.dense(x)) / math.sqrt(2)


class _Attention(Gemma2Attention):
    """Whose capped scores grow with the logarithm of the token's place."""

    def forward(self, hidden_states: torch.Tensor, **options: Any) -> Any:
        growth = torch.ones(hidden_states.shape[1], 1)
        if length := self.config.attn_temperature_len:
            places = torch.arange(len(growth))[:, None]
            growth = (places.log2() / math.log2(length)).clamp(min=1)
        self.scaling = self.config.attn_output_multiplier * growth
        self.attn_logit_softcapping = self.config.attn_logit_softcapping * growth
        return super().forward(hidden_states, **options)


class GrokForCausalLM(Gemma2ForCausalLM):
    config_class = GrokConfig

    def __init__(self, config: Any) -> None:
        if config.rope_parameters["rope_type"] == "yarn":
            config.rope_parameters.setdefault("beta_fast", 8.0)  # as llama.cpp has it
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = _Network(config)
            layer.self_attn.__class__ = _Attention
        embedding = self.model.embed_tokens
        embedding.scalar_embed_scale = config.embedding_multiplier_scale
        embedding.embed_scale.fill_(embedding.scalar_embed_scale)
        self.lm_head.register_forward_hook(lambda *a: a[-1] * config.output_multiplier_scale)

    def forward(self, input_ids: Any, **options: Any) -> Any:
        return super().forward(input_ids, **options | {"use_cache": False})


AutoConfig.register(GrokConfig.model_type, GrokConfig)
