"""Attention of HunYuan."""

from __future__ import annotations

from typing import Any

import torch

from ascend_gguf.srt.models.rotary import set_rotary_embedding


def repair_attention(attention: Any, config: Any) -> None:
    """``HunYuanAttention``: RoPE as in EXAONE 4, and one row a token.

    QK norm leaves one row a head, of which the engine's attention would take the first ones for
    the tokens.
    """
    set_rotary_embedding(attention, config, is_neox_style=True)

    def one_row_a_token(module: torch.nn.Module, inputs: tuple) -> tuple:
        q, k, *rest = inputs
        return q.reshape(-1, attention.q_size), k.reshape(-1, attention.kv_size), *rest

    attention.attn.register_forward_pre_hook(one_row_a_token)
