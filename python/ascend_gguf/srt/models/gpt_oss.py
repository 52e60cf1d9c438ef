"""gpt-oss: its windows on an NPU and its sinks on the CPU."""

from __future__ import annotations

from typing import Any

from sglang.srt.utils import is_cpu, is_npu


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
