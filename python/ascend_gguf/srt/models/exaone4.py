"""The rotary embedding of EXAONE 4."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.rotary_embedding import get_rope

from ascend_gguf.srt.device import uses_ascend_methods


def turn_halves(result: None, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER an attention's ``__init__``: turn row ``i`` of a head with row ``i + half``.

    The engine turns neighbouring rows where the weights are GGUF.  llama.cpp's converter reorders
    rows for that in Llama's family, not in this one.
    """
    if uses_ascend_methods():
        self.rotary_emb = get_rope(
            self.head_dim,
            rotary_dim=self.head_dim,
            max_position=self.max_position_embeddings,
            base=self.rope_theta,
            rope_scaling=kwargs["rope_scaling"],
            is_neox_style=True,
        )
