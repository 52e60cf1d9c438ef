"""Cohere's Command R, Command R7B, and its mixture of experts."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import count, flag, required, scale
from ascend_gguf.architectures.layers import dense_layers, has_tensor, shared_count, sliding_unless
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    ATTENTION,
    HEAD_SIZE,
    LAYER_NORM_FIELDS,
    TIED_FRAME,
    WINDOW,
    expert_fields,
    experts,
    mlp,
    qk_norm,
    shared_expert,
)
from ascend_gguf.reader import GGUFFile

_FIELDS = LAYER_NORM_FIELDS | {"logit_scale": scale("logit_scale")}
_DEFAULTS = {"logit_scale": 1.0}

# One norm per layer: attention and the feed-forward network have the same input.
_ATTENTION = (
    *TIED_FRAME,
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
    *ATTENTION,
)
_BODY = _ATTENTION + mlp()


def _head_size(file: GGUFFile, attributes: Attributes) -> Attributes:
    # As in the engine's model, whatever transformers' default.
    return {"head_dim": attributes["hidden_size"] // attributes["num_attention_heads"]}


_EXPERTS = expert_fields("num_experts", width="intermediate_size") | {
    "expert_weights_norm": flag("norm_topk_prob"),
    "feed_forward_length": "prefix_dense_intermediate_size",
    **required({"leading_dense_block_count": count("first_k_dense_replace")}),
}

COHERE2_MOE = Architecture(
    name="cohere2moe",
    model_type="cohere2_moe",
    fields=_FIELDS | HEAD_SIZE | required(WINDOW) | _EXPERTS,
    defaults=_DEFAULTS | {"norm_topk_prob": False},
    fixed={"expert_gating_func": (2,)},
    tensors=(
        *_ATTENTION,
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
        defaults=_DEFAULTS,
        # The norms are only in Command R+.
        tensors=_BODY + qk_norm(shapes=("heads head", "kv_heads head"), optional=True),
        derived=(has_tensor("use_qk_norm", "blk.0.attn_q_norm.weight"),),
    ),
    Architecture(
        name="cohere2",
        model_type="cohere2",
        fields=_FIELDS | required(WINDOW),
        defaults=_DEFAULTS,
        tensors=_BODY,
        derived=(sliding_unless(4), _head_size),
    ),
)
