"""Layers of Falcon-H1, and its embedding."""

from __future__ import annotations

from typing import Any


def drop_norms(layer: Any, config: Any) -> None:
    """``FalconH1HybridAttentionDecoderLayer``: norms that nothing uses are not required."""
    del layer.q_norm, layer.k_norm


def keep_embedding_in_dtype(model: Any, config: Any) -> None:
    """``FalconH1ForCausalLM``: an embedding that is the output matrix is in the model's dtype.

    The engine makes the output matrix float32, and so everything that begins with the embedding.
    """
    if model.lm_head is model.model.embed_tokens:
        model.lm_head.to(model.model.final_layernorm.weight.dtype)
