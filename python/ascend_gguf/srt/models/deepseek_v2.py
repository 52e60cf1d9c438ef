"""DeepSeek's attention: RoPE without YaRN, and prefill over latent vectors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)
from sglang.srt.utils import is_npu

from ascend_gguf.npu.products import ROPE, this_product
from ascend_gguf.srt.model_executor.layer_sizes import latent_width
from ascend_gguf.srt.overrides import override_methods

#: The one size of keys that npu_interleave_rope turns.
_TURNED = 64


def as_yarn(config: Any) -> None:
    """Express plain and linear RoPE as YaRN, the only one that the engine has here.

    It takes any scaling for DeepSeek's YaRN, and has nothing but that on the CPU.  Without
    extrapolation, and with two magnitudes that cancel, all frequencies are divided by the factor;
    ``mscale_all_dim`` scales queries all the same.
    """
    parameters = config.rope_parameters
    if parameters["rope_type"] in ("default", "linear"):
        factor = parameters.get("factor", 1.0)
        magnitude = parameters.get("mscale_all_dim") or 0.0
        config.rope_parameters = parameters | {
            "rope_type": "yarn",
            "factor": factor,
            # As many rows of sines as there are positions.
            "original_max_position_embeddings": math.ceil(config.max_position_embeddings / factor),
            "extrapolation_factor": 0.0,
            "mscale": magnitude,
            "mscale_all_dim": magnitude,
        }


def repair_attention(attention: Any, config: Any) -> None:
    """``DeepseekV2AttentionMLA``: attend over latent vectors, always, where the device has to.

    For prompts the engine would expand them to keys and values, which its attention backend for
    the CPU does not read: it reads the cache, where the latent vectors are.  On an NPU it is those
    that are attended to as one with their keys; there the engine leaves the temperature out.  What
    RoPE would turn of queries is contiguous there without RoPE, too, as operators ask.
    """
    if is_npu():
        rotary, lacks = attention.rotary_emb, this_product().lacks
        if rotary is None:
            attention.rotary_emb = _turn_nothing
        if latent_width(config) is None:
            return
        if rotary is not None and (config.qk_rope_head_dim != _TURNED or ROPE in lacks):
            rotary._forward_method = rotary.forward_native
        override_methods(attention, forward_absorb_prepare=_forward_absorb_prepare)
    override_methods(attention, dispatch_attn_forward_method=_dispatch_attn_forward_method)


def _turn_nothing(
    positions: torch.Tensor, queries: torch.Tensor, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return queries.contiguous(), keys.contiguous()


def _dispatch_attn_forward_method(
    original: Callable, self: Any, forward_batch: Any
) -> AttnForwardMethod:
    method = original(self, forward_batch)
    is_ours = self.current_attention_backend in ("torch_native", "ascend")
    return AttnForwardMethod.MLA if is_ours else method


def _forward_absorb_prepare(
    original: Callable,
    self: Any,
    positions: torch.Tensor,
    hidden_states: torch.Tensor,
    forward_batch: Any,
    zero_allocator: Any,
    temperature: torch.Tensor | None,
    *args: Any,
) -> tuple[Any, ...]:
    """Queries come in two parts, the first and the third."""
    before = positions, hidden_states, forward_batch, zero_allocator
    q_pe, k_pe, q_nope_out, *others = original(self, *before, temperature, *args)
    if temperature is not None:
        parts = (q_pe, q_nope_out)
        q_pe, q_nope_out = ((part * temperature).to(part.dtype) for part in parts)
    return q_pe, k_pe, q_nope_out, *others
