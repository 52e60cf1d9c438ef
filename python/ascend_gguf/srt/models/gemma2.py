"""Attention of Gemma 2."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.rotary import set_rotary_embedding


def repair_attention(attention: Any, config: Any) -> None:
    """``Gemma2Attention``: RoPE scaling, and each layer's own window.

    The engine's model has a window in every second layer, whatever the configuration says.
    """
    set_rotary_embedding(attention, config)
    slides = config.layer_types[attention.layer_id] == "sliding_attention"
    # The engine's windows leave the token itself out.
    attention.attn.sliding_window_size = config.sliding_window - 1 if slides else -1
