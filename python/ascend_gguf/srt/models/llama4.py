"""Llama 4: routing, and attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.utils import is_npu

from ascend_gguf.srt.models.rotary import set_rotary_embedding
from ascend_gguf.srt.overrides import override_methods


def repair_attention(attention: Any, config: Any) -> None:
    """``Llama4Attention``: interleaved RoPE, as the model has it, and norms in any dtype.

    The engine does the former for GGUF where the configuration is not that of the text model alone.
    """
    if attention.rotary_emb is not None:
        set_rotary_embedding(attention, config, is_neox_style=False)
    override_methods(attention, forward=_attend)


def repair_experts(block: Any, config: Any) -> None:
    """``Llama4MoE``: on an NPU, sigmoids that weigh what an expert takes."""
    if is_npu():
        override_methods(block, _forward_core_normal=_forward_core_normal)


def _attend(
    original: Callable,
    self: Any,
    positions: torch.Tensor,
    hidden_states: torch.Tensor,
    forward_batch: Any,
) -> torch.Tensor:
    """``Llama4Attention.forward``: what the engine computes on CUDA, in any dtype.

    Elsewhere it norms queries and keys in bfloat16, and on the CPU drops what RoPE
    returns.

    Args:
        hidden_states: ``[tokens, hidden]``.
    """
    qkv, _ = self.qkv_proj(hidden_states)
    q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
    if self.rotary_emb is not None:
        q, k = self.rotary_emb(positions, q.contiguous(), k.contiguous())
    if self.qk_norm is not None:
        q, k = (self.qk_norm(x.reshape(-1, self.head_dim)).view(x.shape) for x in (q, k))
    if self.attn_temperature_tuning and not self.use_rope:
        q = self._mul_attn_scale(positions, q)
    output, _ = self.o_proj(self.attn(q.contiguous(), k.contiguous(), v, forward_batch))
    return output


def _forward_core_normal(
    original: Callable, self: Any, hidden_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``Llama4MoE._forward_core_normal``.

    The engine's routing on Ascend takes the softmax, and its runner weighs what an expert gives.

    Args:
        hidden_states: ``[tokens, hidden]``.

    Returns:
        What the shared expert and the routed ones give.
    """
    if self.top_k != 1:  # as in every published model; more would need a row for each
        raise NotImplementedError(f"Llama 4 with {self.top_k} experts a token on an NPU")
    logits, _ = self.router(hidden_states)
    weights, ids = type(self).custom_routing_function(hidden_states, logits, self.top_k, False)
    routed = StandardTopKOutput(torch.ones_like(weights), ids, logits)
    return self.shared_expert(hidden_states), self.experts(hidden_states * weights, routed)
