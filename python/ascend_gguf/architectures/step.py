"""Step 3.5 and 3.7 Flash: layers with a window have more heads, and RoPE of their own.

The configuration is in the engine's terms: ``num_attention_heads`` is of layers without a window,
``attention_other_setting`` of those with one.
"""

from __future__ import annotations

from typing import Any

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import count, required, scale
from ascend_gguf.architectures.layers import (
    FULL,
    SLIDING,
    dense_layers,
    numbers_of_layers,
    of_each_type,
    sliding_unless,
)
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    EMBEDDING,
    FIELDS,
    HEAD_SIZE,
    OFFSET,
    OFFSET_OUTPUT_NORM,
    OUTPUT,
    OWN_HEADS,
    WINDOW,
    attention,
    expert_fields,
    experts,
    mlp,
    qk_norm,
    router_bias,
    shared_expert,
)
from ascend_gguf.reader import GGUFFile

_CLAMPS = {"swiglu_clamp_exp": "swiglu_limits", "swiglu_clamp_shexp": "swiglu_limits_shared"}


@reads("rope.freq_base_swa", "rope.dimension_count", "rope.dimension_count_swa")
def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Without a window the first half of what is turned with one, scaled if anything is."""
    turned = number(file, "rope.dimension_count") or attributes["head_dim"]
    with_window = number(file, "rope.dimension_count_swa") or turned
    found = rope.by_layer_type(None, turned // 2)(file, attributes)
    for kind, dimensions in ((FULL, turned // 2), (SLIDING, with_window)):
        found[kind]["partial_rotary_factor"] = dimensions / attributes["head_dim"]
    return found


def _heads(file: GGUFFile, attributes: Attributes) -> Attributes:
    query = of_each_type(file, attributes, "num_attention_heads", "attention.head_count")
    kv = of_each_type(file, attributes, "num_key_value_heads", "attention.head_count_kv")
    names = {"num_attention_heads": query[SLIDING], "num_attention_groups": kv[SLIDING]}
    return {
        "num_attention_heads": query[FULL],
        "num_key_value_heads": kv[FULL],
        "num_attention_groups": kv[FULL],
        "attention_other_setting": names,
    }


@reads(*_CLAMPS)
def _clamps(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Limits of each layer's networks; zero is none."""
    found: dict[str, Any] = {}
    for key, attribute in _CLAMPS.items():
        found[attribute] = numbers_of_layers(file, key, attributes["num_hidden_layers"])
    return found


ARCHITECTURES = (
    Architecture(
        name="step35",
        model_type="step35",
        causal_lm="Step3p5ForCausalLM",
        fields=FIELDS
        | HEAD_SIZE
        | OWN_HEADS
        | expert_fields("moe_num_experts", "moe_top_k")
        | required(WINDOW)
        | {
            "expert_shared_feed_forward_length": "share_expert_dim",
            "expert_weights_scale": scale("moe_router_scaling_factor"),
            "leading_dense_block_count": count("first_k_dense_replace"),
        },
        defaults={"moe_router_scaling_factor": 1.0, "first_k_dense_replace": 0},
        fixed={"expert_gating_func": (2,), "expert_weights_norm": (True,)},
        constants={
            "use_head_wise_attn_gate": True,
            "use_moe_router_bias": True,
            "need_fp32_gate": True,
        },
        tensors=(
            EMBEDDING,
            OUTPUT,
            OFFSET_OUTPUT_NORM,
            per_layer("attn_norm.weight", "hidden", "input_layernorm.weight", **OFFSET),
            per_layer("ffn_norm.weight", "hidden", "post_attention_layernorm.weight", **OFFSET),
            *attention(),
            *qk_norm(**OFFSET),
            per_layer("attn_gate.weight", "heads hidden", "self_attn.g_proj.weight", dense=True),
            *mlp("dense"),
            *experts("moe", kind="sparse"),
            router_bias("moe.router_bias"),
            *shared_expert("share_expert", kind="sparse"),
        ),
        rope=_rope,
        derived=(sliding_unless(4), dense_layers, _heads, _clamps),
    ),
)
