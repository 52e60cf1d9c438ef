"""Hunyuan 4: its attention where the engine's operators for sparse attention are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)
from sglang.srt.models.deepseek_v2 import DeepseekV2AttentionMLA

from ascend_gguf.srt.overrides import override_methods


def repair_attention(attention: Any, config: Any) -> None:
    """``HYV4Attention``: any backend attends, with sinks.

    The engine's refuses all backends but that of sparse attention, whose name for sinks is its own.
    """
    inner = attention.attn_mqa
    inner.forward = partial(_with_sinks, inner.forward, attention)
    override_methods(attention, dispatch_attn_forward_method=_dispatch_attn_forward_method)


def _with_sinks(
    original: Callable, attention: Any, *args: Any, attn_sink: Any = None, **kwargs: Any
) -> torch.Tensor:
    """Overrides ``RadixAttention.forward`` of ``attention``."""
    return original(*args, sinks=attention.learnable_sink_param, **kwargs)


def _dispatch_attn_forward_method(
    original: Callable, self: Any, forward_batch: Any
) -> AttnForwardMethod:
    return DeepseekV2AttentionMLA.dispatch_attn_forward_method(self, forward_batch)
