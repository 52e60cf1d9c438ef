"""Attention of Command R7B, and dense layers of Cohere's mixture of experts."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.windows import include_token


def count_dense_layers(config: Any) -> None:
    """Say how many layers are dense; transformers' configuration has a list of them alone."""
    config.first_k_dense_replace = config.mlp_layer_types.count("dense")


def repair_attention(attention: Any, config: Any) -> None:
    """``CohereAttention``: the token itself is in its window.

    Where RoPE does not copy them, queries are a part of a wider matrix, which Ascend's operators
    refuse.
    """
    include_token(attention, config)
    copy_inputs(attention)


def copy_inputs(attention: Any) -> None:
    """Let the operator of an attention have queries, keys and values that are whole matrices."""
    attention.attn.register_forward_pre_hook(
        lambda module, inputs: (*(x.contiguous() for x in inputs[:3]), *inputs[3:])
    )
