"""Attention of Command R7B."""

from __future__ import annotations

from typing import Any


def repair_attention(attention: Any, config: Any) -> None:
    """``CohereAttention``: count the token itself in its window.

    A window of the configuration includes the token, one of the engine's attention does not; the
    engine's other models subtract one.  Where RoPE does not copy them, queries are a part
    of a wider matrix, which Ascend's operators refuse.
    """
    if attention.sliding_window_size > 0:
        attention.attn.sliding_window_size = attention.sliding_window_size - 1
    copy_inputs(attention)


def copy_inputs(attention: Any) -> None:
    """Let the operator of an attention have queries, keys and values that are whole matrices."""
    attention.attn.register_forward_pre_hook(
        lambda module, inputs: (*(x.contiguous() for x in inputs[:3]), *inputs[3:])
    )
