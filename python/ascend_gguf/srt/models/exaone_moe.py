"""Attention of K-EXAONE."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.rotary import set_rotary_embedding


def repair_attention(attention: Any, config: Any) -> None:
    """``ExaoneMoEAttention``: the rows that the file has, and a token counts in its own window.

    As in EXAONE 4 and in Command R7B.
    """
    set_rotary_embedding(attention, config, is_neox_style=True)
    if attention.sliding_window:
        attention.attn.sliding_window_size = config.sliding_window - 1
