"""Ling and Ring 2.0, whose architecture is called Bailing."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, count, length, per_layer, required
from ascend_gguf.architectures.layers import groups
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    DENSE_OR_SPARSE,
    FIELDS,
    GROUPED_DEFAULTS,
    GROUPED_ROUTING,
    HEAD_SIZE,
    MOE_FIELDS,
    NORMS,
    OUTPUT,
    qk_norm,
    router_bias,
)
from ascend_gguf.reader import GGUFFile

_EXPERT_FIELDS = MOE_FIELDS | required(
    {"expert_count": "num_experts", "expert_shared_count": count("num_shared_experts")}
)


def _shared_size(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Width of one shared expert, as the engine reads it, and of all together."""
    one = attributes.get("moe_shared_expert_intermediate_size")
    one = one or attributes["moe_intermediate_size"]
    return {
        "moe_shared_expert_intermediate_size": one,
        "shared_expert_intermediate_size": one * attributes["num_shared_experts"],
    }


ARCHITECTURES = (
    Architecture(
        name="bailingmoe2",
        model_type="bailing_moe_v2",
        causal_lm="BailingMoeV2ForCausalLM",
        fields=FIELDS
        | HEAD_SIZE
        | _EXPERT_FIELDS
        | GROUPED_ROUTING
        | {"expert_shared_feed_forward_length": length("moe_shared_expert_intermediate_size")},
        defaults=GROUPED_DEFAULTS | {"num_nextn_predict_layers": 0},
        reads=frozenset({"rope.dimension_count"}),
        fixed={"expert_gating_func": (2,)},
        tensors=(
            Rename("token_embd.weight", "vocab hidden", "model.word_embeddings.weight"),
            Rename("output_norm.weight", "hidden", "model.norm.weight"),
            OUTPUT,
            *NORMS,
            per_layer("attn_qkv.weight", "q+2*kv hidden", "attention.query_key_value.weight"),
            *qk_norm("attention.query_layernorm", "attention.key_layernorm"),
            per_layer("attn_output.weight", "hidden q", "attention.dense.weight"),
            *DENSE_OR_SPARSE,
            router_bias("mlp.gate.expert_bias"),
        ),
        constants={
            "hidden_act": "silu",
            "use_bias": False,
            "use_qkv_bias": False,
            "use_qk_norm": True,
            "embedding_dropout": 0.0,
            "score_function": "sigmoid",
            "moe_router_enable_expert_bias": True,
            "router_dtype": "fp32",
        },
        rope=rope.partial,
        derived=(groups, _shared_size, rope.partial_factor),
    ),
)
