"""Laguna: its configuration, and a packed embedding."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding


def name_sizes(config: Any) -> None:
    """What the engine's class asks for beside the configuration; RoPE is repaired afterwards."""
    config.sliding_window = config.sliding_window or 0
    for prefix in ("", "swa_"):
        setattr(config, f"{prefix}rope_theta", 1e4)
        setattr(config, f"{prefix}partial_rotary_factor", 1.0)
    config.full_rope_scaling = config.swa_rope_scaling = None


def repair_embedding(causal_lm: Any, config: Any) -> None:
    """``LagunaForCausalLM``: the embedding may be packed, and the output matrix be the same."""
    model = causal_lm.model
    if isinstance(model.embed_tokens, VocabParallelEmbedding):
        layer = model.layers[model.start_layer]
        model.embed_tokens = VocabParallelEmbedding(
            config.vocab_size,
            config.hidden_size,
            quant_config=layer.self_attn.qkv_proj.quant_config,
            prefix="model.embed_tokens",
        )
    if config.tie_word_embeddings:
        causal_lm.lm_head = model.embed_tokens
