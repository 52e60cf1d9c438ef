"""Muse Glimmer: RoPE from the configuration alone."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.rotary import set_rotary_embedding


def name_sizes(config: Any) -> None:
    """What the engine's class calls otherwise, and what it asks for beside the configuration."""
    config.hidden_act = config.hidden_activation
    config.no_rope_layers = [int(theta > 0) for theta in config.layer_rope_theta]
    config.rope_theta = config.rope_parameters["rope_theta"]
    config.use_qk_norm = config.use_attn_output_gate = config.normalize_tok_embeddings = True
    config.rope_is_neox_style = True
    config.output_soft_cap_temp = config.final_logit_softcapping


def repair_attention(attention: Any, config: Any) -> None:
    """``MuseGlimmerAttention``: RoPE scaling, and a fractional base, in layers that have RoPE."""
    if attention.rotary_emb is not None:
        set_rotary_embedding(attention, config)
