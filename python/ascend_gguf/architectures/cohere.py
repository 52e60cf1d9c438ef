"""Cohere's Command R and Command R7B."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, fraction, per_layer
from ascend_gguf.architectures.layers import has_tensor, sliding_unless
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    REQUIRED,
    WINDOW,
    mlp,
)

_EPSILON = "attention.layer_norm_rms_epsilon"
_FIELDS = {key: value for key, value in FIELDS.items() if key != _EPSILON} | {
    "attention.layer_norm_epsilon": fraction("layer_norm_eps"),
    "logit_scale": fraction("logit_scale"),
}
_REQUIRED = REQUIRED - {_EPSILON} | {"logit_scale"}

# One norm a block: attention and the feed-forward network take the same input.
_BODY = (
    *FRAME,
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
    *ATTENTION,
    *mlp(),
)

ARCHITECTURES = (
    Architecture(
        name="command-r",
        model_type="cohere",
        fields=_FIELDS,
        required=_REQUIRED,
        tensors=_BODY
        + (
            # Command R+ alone has them.
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
        fields=_FIELDS | HEAD_SIZE | WINDOW,
        required=_REQUIRED,
        tensors=_BODY,
        derived=(sliding_unless(4),),
    ),
)
