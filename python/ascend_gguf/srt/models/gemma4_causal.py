"""Gemma 4: embeddings that ranks share, and layers that have no keys and values of their own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from ascend_gguf.srt.layers.linear import wrap_loader
from ascend_gguf.srt.models.buffers import use_buffer
from ascend_gguf.srt.models.gemma3_causal import shared_by_ranks


def repair_embeddings(model: Any, config: Any) -> None:
    """``Gemma4ForCausalLM``: as Gemma 3's, and that of what each layer adds for a token.

    Also of ``Gemma3nForCausalLM``.
    """
    body = model.model
    for name in ("embed_tokens", "embed_tokens_per_layer"):
        whole = getattr(body, name)
        if isinstance(whole, nn.Embedding):
            setattr(body, name, shared_by_ranks(whole))
            if model.lm_head is whole:
                model.lm_head = getattr(body, name)


def repair_attention(attention: Any, config: Any) -> None:
    """``Gemma4Attention``: one that attends to another layer's keys has none, and no norm of any.

    The engine's has a projection to them whose result it drops.
    """
    if attention.is_kv_shared_layer:
        wrap_loader(attention.qkv_proj, partial(_load_queries, attention.q_size))
        use_buffer(attention.k_norm, "weight")


def _load_queries(rows: int, load: Callable) -> Callable:
    """The weight loader ``load``, where ``rows`` of queries are all that a file has."""

    def load_weight(
        parameter: nn.Parameter, weight: torch.Tensor, shard: str | None = None
    ) -> None:
        load(parameter, weight, shard)
        parameter.data.narrow(0, rows, parameter.shape[0] - rows).zero_()

    return load_weight


def repair_router(router: Any, config: Any) -> None:
    """``Gemma4Router``: a factor of its input, which the norm knows on CUDA alone."""
    router.norm.with_scale = True


def repair_experts(experts: Any, config: Any) -> None:
    """``Gemma4MoE``: the scale of an expert is that of its matrix in the file.

    Then experts are chosen as usual: by the softmax of all, divided by the sum of the best.
    """
    use_buffer(experts, "per_expert_scale")
    experts.topk.topk_config.custom_routing_function = None
