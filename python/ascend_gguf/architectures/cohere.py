"""Cohere's Command R and Command R7B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_gguf.architectures.base import Architecture, fraction, per_layer, scale
from ascend_gguf.architectures.layers import has_tensor, sliding_unless
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    PATTERN,
    REQUIRED,
    TIED_FRAME,
    WINDOW,
    mlp,
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


ARCHITECTURES = (
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
