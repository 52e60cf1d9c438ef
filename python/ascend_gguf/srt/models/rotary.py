"""Which rows of a head the rotary embedding turns together."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.rotary_embedding import get_rope


def set_rotary_style(attention: Any, config: Any, is_neox_style: bool) -> None:
    """Give an attention another rotary embedding, of the configuration's own parameters.

    Args:
        attention: has ``head_dim`` and ``max_position_embeddings``.
        is_neox_style: turn row ``i`` with row ``i + half``; else neighbouring rows.
    """
    parameters = config.rope_parameters
    attention.rotary_emb = get_rope(
        attention.head_dim,
        rotary_dim=attention.head_dim,
        max_position=attention.max_position_embeddings,
        base=parameters["rope_theta"],
        rope_scaling=parameters,
        is_neox_style=is_neox_style,
    )
