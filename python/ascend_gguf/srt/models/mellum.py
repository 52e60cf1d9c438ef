"""Attention of Mellum 2 on an NPU."""

from __future__ import annotations

from typing import Any


def repair_attention(attention: Any, config: Any) -> None:
    """``MellumAttention``: on an NPU as elsewhere, where the engine has nothing.

    Its fused operator takes sines and cosines that the first layer has computed for all.
    """
    attention.forward_prepare_npu = attention.forward_prepare_native
