"""The short convolution of LFM2 without Triton, and its RoPE on an NPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import ForwardBatch
from sglang.srt.model_executor.forward_context import get_attn_backend
from sglang.srt.utils import is_cpu, is_npu

from ascend_gguf.cpu.causal_conv import causal_conv1d_fn, causal_conv1d_update
from ascend_gguf.srt.overrides import let_see, override_methods


def repair_attention(attention: Any, config: Any) -> None:
    """``Lfm2Attention`` and ``Lfm2MoeAttention``: RoPE of one row a token.

    With one row a head the engine calls an operator on an NPU that not every release has.
    """
    rotary = attention.rotary_emb  # of all layers
    if is_npu() and not rotary._forward_pre_hooks:
        rotary.register_forward_pre_hook(
            lambda module, inputs: (inputs[0], *(x.flatten(1) for x in inputs[1:]))
        )


def repair_convolution(convolution: Any, config: Any) -> None:
    """``Lfm2ShortConv`` and ``Lfm2MoeShortConv``: the engine's operators are Triton kernels."""
    if is_cpu():
        ours = {"causal_conv1d_fn": causal_conv1d_fn, "causal_conv1d_update": causal_conv1d_update}
        let_see(convolution, "forward", **ours)
    elif is_npu():
        override_methods(convolution, forward=_forward_npu)


def _forward_npu(
    original: Callable, self: Any, hidden_states: torch.Tensor, forward_batch: ForwardBatch
) -> torch.Tensor:
    if forward_batch.forward_mode.is_idle():
        return hidden_states
    before, behind, x = self.in_proj(hidden_states)[0].chunk(3, dim=-1)
    backend = get_attn_backend().short_conv_backend
    layer = self.conv_weight, self.conv_bias, self.layer_idx
    return self.out_proj(behind * backend.convolve_layer(before * x, *layer, forward_batch))[0]
