"""gpt-oss: loading, its windows on an NPU and its sinks on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from sglang.srt.utils import is_cpu, is_npu

from ascend_gguf.srt.models.single_experts import load_single_experts
from ascend_gguf.srt.overrides import override_methods


def repair_loading(model: Any, config: Any) -> None:
    """``GptOssForCausalLM``: experts are loaded one by one.

    The engine's loader has gate and up in one tensor of all experts.
    """
    override_methods(model, load_weights=_load_weights)


def _load_weights(
    original: Callable,
    self: torch.nn.Module,
    weights: Iterable[tuple[str, torch.Tensor]],
    **kwargs: Any,
) -> None:
    return original(self, load_single_experts(self, weights), **kwargs)


def repair_attention(attention: Any, config: Any) -> None:
    """``GptOssAttention``: a token counts in its own window on an NPU, the CPU has exact sinks.

    The kernels for Ascend (``sgl_kernel_npu.attention.sinks_attention``) look at as many tokens as
    they are told, the token itself included; the engine tells them the number before it.  Sinks
    are bfloat16 whatever the model computes in, which its kernels for other devices want.
    """
    if is_npu() and attention.attn.sliding_window_size > 0:
        attention.attn.sliding_window_size += 1
    if is_cpu():
        attention.sinks.data = attention.sinks.data.float()
