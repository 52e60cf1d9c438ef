"""Attention of EXAONE 4."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.rotary_embedding import get_rope

from ascend_gguf.srt.device import uses_ascend_methods


def turn_halves(self: Any, config: Any) -> None:
    """Let an attention turn row ``i`` of a head with row ``i + half``.

    The engine turns neighbouring rows where the weights are GGUF.  llama.cpp's converter reorders
    rows for that in Llama's family, not in others.
    """
    parameters = config.rope_parameters
    self.rotary_emb = get_rope(
        self.head_dim,
        rotary_dim=self.head_dim,
        max_position=self.max_position_embeddings,
        base=parameters["rope_theta"],
        rope_scaling=parameters,
        is_neox_style=True,
    )


def repair_attention(result: None, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Exaone4Attention.__init__``: the rows that the file has, and the model's own numbers.

    The engine leaves the base of the rotary embedding and the epsilon of the norms at defaults.
    """
    if uses_ascend_methods():
        config = kwargs["config"]
        turn_halves(self, config)
        for norm in (self.q_norm, self.k_norm):
            norm.variance_epsilon = config.rms_norm_eps
