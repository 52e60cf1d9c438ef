"""Cohere's Command R, Command R7B, and its mixture of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_gguf.architectures.base import (
    Architecture,
    Fields,
    count,
    flag,
    fraction,
    per_layer,
    scale,
)
from ascend_gguf.architectures.layers import dense_layers, has_tensor, shared_count, sliding_unless
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    HEAD_SIZE,
    PATTERN,
    REQUIRED,
    TIED_FRAME,
    WINDOW,
    experts,
    mlp,
    shared_expert,
)
from ascend_gguf.reader import GGUFFile

_EPSILON = "attention.layer_norm_rms_epsilon"
_FIELDS = {key: value for key, value in FIELDS.items() if key != _EPSILON} | {
    "attention.layer_norm_epsilon": fraction("layer_norm_eps"),
    "logit_scale": scale("logit_scale"),
}
_REQUIRED = REQUIRED - {_EPSILON} | {"attention.layer_norm_epsilon"}
_DEFAULTS = {"logit_scale": 1.0}

# One norm per layer: attention and the feed-forward network have the same input.
_BODY = (
    *TIED_FRAME,
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
    *ATTENTION,
    *mlp(),
)


def _head_size(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, int]:
    # As in the engine's model, whatever transformers' default.
    return {"head_dim": attributes["hidden_size"] // attributes["num_attention_heads"]}


_EXPERTS: Fields = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "intermediate_size",
    "expert_weights_norm": flag("norm_topk_prob"),
    "leading_dense_block_count": count("first_k_dense_replace"),
    "feed_forward_length": "prefix_dense_intermediate_size",
}

COHERE2_MOE = Architecture(
    name="cohere2moe",
    model_type="cohere2_moe",
    fields=_FIELDS | HEAD_SIZE | WINDOW | _EXPERTS,
    required=_REQUIRED | frozenset(WINDOW) | frozenset(_EXPERTS) - {"expert_weights_norm"},
    defaults=_DEFAULTS | {"norm_topk_prob": False},
    reads=PATTERN | {"expert_shared_feed_forward_length"},
    fixed={"expert_gating_func": (2,)},
    tensors=(
        *TIED_FRAME,
        per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
        *ATTENTION,
        *mlp("dense"),
        *experts(kind="sparse"),
        *shared_expert("mlp.shared_experts", kind="sparse shared"),
    ),
    constants={
        "expert_selection_fn": "sigmoid",
        "shared_expert_combination_strategy": "average",
        "prefix_dense_sliding_window_pattern": 1,
    },
    derived=(sliding_unless(4, first=True), dense_layers, shared_count("num_shared_experts")),
)

ARCHITECTURES = (
    COHERE2_MOE,
    Architecture(
        name="command-r",
        model_type="cohere",
        fields=_FIELDS,
        required=_REQUIRED,
        defaults=_DEFAULTS,
        tensors=_BODY
        + (
            # Only in Command R+.
            per_layer("attn_q_norm.weight", "heads head", "self_attn.q_norm.weight", optional=True),
            per_layer(
                "attn_k_norm.weight", "kv_heads head", "self_attn.k_norm.weight", optional=True
            ),
        ),
        derived=(has_tensor("use_qk_norm", "blk.0.attn_q_norm.weight"),),
    ),
    Architecture(
        name="cohere2",
        model_type="cohere2",
        fields=_FIELDS | WINDOW,
        required=_REQUIRED | frozenset(WINDOW),
        defaults=_DEFAULTS,
        reads=PATTERN,
        tensors=_BODY,
        derived=(sliding_unless(4), _head_size),
    ),
)
