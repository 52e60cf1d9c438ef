"""Sliding windows: a configuration's includes the token itself, the engine's does not."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention


def include_token(attention: Any, config: Any) -> None:
    """A repair of an attention to which the engine gives the configuration's window as it is."""
    if attention.attn.sliding_window_size > 0:
        attention.attn.sliding_window_size = config.sliding_window - 1


def attend_in_window(model: torch.nn.Module, config: Any) -> None:
    """``Phi3ForCausalLM``, which the engine has from Llama: the window, in every layer."""
    if config.sliding_window:
        for module in model.modules():
            if isinstance(module, RadixAttention):
                module.sliding_window_size = config.sliding_window - 1
