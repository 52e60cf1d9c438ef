"""Attention of EXAONE 4 and K-EXAONE."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.rotary import set_rotary_embedding
from ascend_gguf.srt.models.windows import include_token


def repair_attention(attention: Any, config: Any) -> None:
    """``Exaone4Attention``: RoPE that is not interleaved, with the model's own parameters.

    The engine has interleaved RoPE where the weights are GGUF; llama.cpp's converter reorders
    rows for that in Llama's family, not in this one.  The engine also leaves RoPE's base and the
    epsilon of the norms at defaults.
    """
    set_rotary_embedding(attention, config, is_neox_style=True)
    for norm in (attention.q_norm, attention.k_norm):
        norm.variance_epsilon = config.rms_norm_eps


def repair_moe_attention(attention: Any, config: Any) -> None:
    """``ExaoneMoEAttention``: the same RoPE, and a token counts in its own window."""
    set_rotary_embedding(attention, config, is_neox_style=True)
    include_token(attention, config)
