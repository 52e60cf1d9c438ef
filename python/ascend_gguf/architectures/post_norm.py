"""Models that normalise what a layer adds, not what it takes: OLMo 2, EXAONE 4."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.layers import sliding_unless
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    QK_NORM,
    REQUIRED,
    mlp,
)

_BODY = (
    *FRAME,
    per_layer("post_attention_norm.weight", "hidden", "post_attention_layernorm.weight"),
    per_layer("post_ffw_norm.weight", "hidden", "post_feedforward_layernorm.weight"),
    *ATTENTION,
    *mlp(),
)

ARCHITECTURES = (
    Architecture(
        name="olmo2",
        model_type="olmo2",
        fields=FIELDS,
        required=REQUIRED,
        tensors=_BODY
        + (
            # Over all heads at once.
            per_layer("attn_q_norm.weight", "q", "self_attn.q_norm.weight"),
            per_layer("attn_k_norm.weight", "kv", "self_attn.k_norm.weight"),
        ),
    ),
    Architecture(
        name="exaone4",
        model_type="exaone4",
        fields=FIELDS | HEAD_SIZE | {"attention.sliding_window": "sliding_window"},
        required=REQUIRED,
        tensors=_BODY + QK_NORM,
        derived=(sliding_unless(4),),
    ),
)
