"""Ling and Ring, called Bailing in their files, and DeepSeek-MoE, which computes the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename
from ascend_gguf.architectures.fields import count, length, required
from ascend_gguf.architectures.layers import groups
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    DENSE_OR_SPARSE,
    FIELDS,
    GROUPED_DEFAULTS,
    GROUPED_ROUTING,
    HEAD_SIZE,
    NORMS,
    OUTPUT,
    UNGROUPED_ROUTING,
    attention,
    expert_fields,
    qk_norm,
    router_bias,
    without,
)
from ascend_gguf.architectures.transforms import Transform, halves_from_pairs
from ascend_gguf.reader import GGUFFile

_EXPERT_FIELDS = expert_fields("num_experts")

_CONSTANTS: dict[str, Any] = {
    "hidden_act": "silu",
    "use_bias": False,
    "use_qkv_bias": False,
    "embedding_dropout": 0.0,
    "router_dtype": "fp32",
}


def _module(name: str) -> str:
    return name.replace("self_attn", "attention")


def _body(q: Transform | None = None, k: Transform | None = None) -> tuple[Rename, ...]:
    projections = attention(q, k, output="self_attn.dense")
    return (
        Rename("token_embd.weight", "vocab hidden", "model.word_embeddings.weight"),
        Rename("output_norm.weight", "hidden", "model.norm.weight"),
        OUTPUT,
        *NORMS,
        *(rule.renamed(_module) for rule in projections),
        *DENSE_OR_SPARSE,
    )


def _shared_size(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Width of one shared expert, as the engine reads it, and of all together."""
    one = attributes.get("moe_shared_expert_intermediate_size")
    one = one or attributes["moe_intermediate_size"]
    return {
        "moe_shared_expert_intermediate_size": one,
        "shared_expert_intermediate_size": one * attributes["num_shared_experts"],
    }


BAILING_MOE2 = Architecture(
    name="bailingmoe2",
    model_type="bailing_moe_v2",
    causal_lm="BailingMoeV2ForCausalLM",
    fields=FIELDS
    | HEAD_SIZE
    | _EXPERT_FIELDS
    | GROUPED_ROUTING
    | required({"expert_shared_count": count("num_shared_experts")})
    | {"expert_shared_feed_forward_length": length("moe_shared_expert_intermediate_size")},
    defaults=GROUPED_DEFAULTS | {"num_nextn_predict_layers": 0},
    fixed={"expert_gating_func": (2,)},
    tensors=(
        *_body(),
        *qk_norm("attention.query_layernorm", "attention.key_layernorm"),
        router_bias("mlp.gate.expert_bias"),
    ),
    constants=_CONSTANTS
    | {"use_qk_norm": True, "score_function": "sigmoid", "moe_router_enable_expert_bias": True},
    rope=rope.partial,
    derived=(groups, _shared_size, rope.partial_factor),
)

#: Its experts are chosen by a softmax, and every layer has them.
BAILING_MOE = Architecture(
    name="bailingmoe",
    model_type="bailing_moe",
    causal_lm="BailingMoeForCausalLM",
    fields=FIELDS
    | HEAD_SIZE
    | _EXPERT_FIELDS
    | without(UNGROUPED_ROUTING, "leading_dense_block_count")
    | {"expert_shared_count": "num_shared_experts"},
    defaults=GROUPED_DEFAULTS,
    fixed={"expert_gating_func": (1,)},
    tensors=_body(halves_from_pairs("heads"), halves_from_pairs("kv_heads")),
    constants=_CONSTANTS | {"score_function": "softmax"},
)

#: DeepSeek-MoE 16B, whose first layers are dense; the weights of its experts are never normalized.
DEEPSEEK = replace(
    BAILING_MOE,
    name="deepseek",
    fields=FIELDS
    | HEAD_SIZE
    | _EXPERT_FIELDS
    | without(UNGROUPED_ROUTING, "expert_weights_norm")
    | {"expert_shared_count": "num_shared_experts"},
    fixed={"expert_gating_func": (1,), "expert_weights_norm": (False,)},
)

#: The text of DeepSeek-OCR, which turns whole heads and has no window, whatever its keys say.
DEEPSEEK_OCR = replace(
    DEEPSEEK,
    name="deepseek2-ocr",
    fields={**BAILING_MOE.fields, "leading_dense_block_count": count("first_k_dense_replace")},
    reads=frozenset({"rope.dimension_count", "attention.sliding_window"}),
    fixed=BAILING_MOE.fixed,
    tensors=_body(),
)

ARCHITECTURES = (BAILING_MOE2, BAILING_MOE, DEEPSEEK, DEEPSEEK_OCR)
