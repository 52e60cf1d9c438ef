"""Attention of Granite, in some of its models with windows and sinks."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models import gpt_oss
from ascend_gguf.srt.models.rotary import set_rotary_embedding


def set_base(config: Any) -> None:
    """The base of a file, or of a command, counts in all layers with a rotary embedding."""
    if len(set(config.layer_rope_theta) - {0}) == 1:  # a checkpoint's may be each layer's own
        theta = config.rope_parameters["rope_theta"]
        config.layer_rope_theta = [theta if own else 0 for own in config.layer_rope_theta]


def repair_attention(attention: Any, config: Any) -> None:
    """``GraniteAttention``: sinks and windows as gpt-oss has them."""
    if attention.sinks is not None:
        gpt_oss.repair_attention(attention, config)


def repair_moe_attention(attention: Any, config: Any) -> None:
    """``GraniteMoeAttention``: the same, and RoPE scaling, in layers that have RoPE."""
    repair_attention(attention, config)
    if attention.rotary_emb is not None:
        set_rotary_embedding(attention, config, base=attention.rope_theta)
