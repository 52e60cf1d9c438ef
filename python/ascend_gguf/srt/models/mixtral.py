"""Attention of Mixtral."""

from __future__ import annotations

from typing import Any

from sglang.srt.models.llama import LlamaAttention


def replace_attention(model: Any, config: Any) -> None:
    """``MixtralModel``: Llama's attention, which is the same but for what it reads.

    The engine's own takes ``hidden_size / num_attention_heads`` for the size of a head, and leaves
    RoPE scaling out.
    """
    for number in range(model.start_layer, model.end_layer):
        layer = model.layers[number]
        layer.self_attn = LlamaAttention(
            config=config,
            hidden_size=config.hidden_size,
            num_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            layer_id=number,
            start_layer=model.start_layer,
            rope_theta=config.rope_parameters["rope_theta"],
            rope_scaling=config.rope_parameters,
            max_position_embeddings=config.max_position_embeddings,
            quant_config=layer.self_attn.qkv_proj.quant_config,
            prefix=f"model.layers.{number}.self_attn",
            reduce_results=layer.self_attn.o_proj.reduce_results,
        )
