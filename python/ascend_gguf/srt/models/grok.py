"""Grok: its layers by the engine's own parts, which it runs by Triton or by an AMX library."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.runtime_context import get_parallel

from ascend_gguf.srt.models.direct_loading import load_directly
from ascend_gguf.srt.models.rotary import set_rotary_embedding
from ascend_gguf.srt.overrides import override_methods


def whole_experts(config: Any) -> None:
    """A file has experts whole, where the engine's checkpoints of several ranks have shares."""
    config.load_presharded_moe = False


def repair_model(causal_lm: Any, config: Any) -> None:
    """``Grok1ForCausalLM``: embedding and output matrix may be packed, or be the same.

    The engine multiplies the output matrix by the scale of logits while it loads.
    """
    model, options = causal_lm.model, {"quant_config": causal_lm.quant_config}
    sizes = config.vocab_size, config.hidden_size
    model.embed_tokens = VocabParallelEmbedding(*sizes, prefix="model.embed_tokens", **options)
    causal_lm.lm_head = model.embed_tokens
    if not config.tie_word_embeddings:
        causal_lm.lm_head = ParallelLMHead(*sizes, prefix="lm_head", **options)
    causal_lm.logits_processor.logit_scale = config.output_multiplier_scale
    # Our loader looks whether it has loaded everything.
    causal_lm.load_weights = partial(causal_lm.load_weights, check_hit_names=False)
    load_directly(causal_lm, r"lm_head\.")


def repair_layers(model: Any, config: Any) -> None:
    """``Grok1Model``: norms by the engine's layers, without Triton."""
    override_methods(model, forward=_forward)


def _forward(
    original: Callable,
    self: Any,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    forward_batch: Any,
    input_embeds: torch.Tensor | None = None,
) -> torch.Tensor:
    hidden = input_embeds
    if hidden is None:
        hidden = self.embed_tokens(input_ids) * self.config.embedding_multiplier_scale
    for layer in self.layers:
        attended = layer.self_attn(
            positions=positions,
            hidden_states=layer.pre_attn_norm(hidden),
            forward_batch=forward_batch,
        )
        if get_parallel().tp_size > 1:
            attended = tensor_model_parallel_all_reduce(attended)
        hidden = hidden + layer.post_attn_norm(attended)
        hidden = hidden + layer.post_moe_norm(layer.ffn(layer.pre_moe_norm(hidden)))
    return self.norm(hidden)


def repair_layer(layer: Any, config: Any) -> None:
    """``Grok1DecoderLayer``: experts and dense network one after the other."""
    layer.alt_stream = None


def repair_network(mlp: Any, config: Any) -> None:
    """``Grok1MLP``: the activation by the engine's layer, without Triton."""
    override_methods(mlp, forward=_network)


def _network(original: Callable, self: Any, x: torch.Tensor) -> torch.Tensor:
    gate_up, _ = self.gate_up_proj(x)
    return self.down_proj(self.act_fn(gate_up))[0]


def repair_experts(moe: Any, config: Any) -> None:
    """``Grok1MoE``: the router without Triton, and its cap from the file; zero is none."""
    moe.router_logit_softcapping = config.router_logit_softcapping
    moe.topk.topk_config.custom_routing_function = None
    override_methods(moe, forward=_route)


def _route(original: Callable, self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    logits, _ = self.gate(hidden_states.float())
    if cap := self.router_logit_softcapping:
        logits = cap * torch.tanh(logits / cap)
    return self.experts(hidden_states, self.topk(hidden_states, logits))


def repair_attention(attention: Any, config: Any) -> None:
    """``Grok1Attention``: the scale of scores, and RoPE, from the file."""
    attention.attn.scaling = config.attn_output_multiplier
    set_rotary_embedding(attention, config)
