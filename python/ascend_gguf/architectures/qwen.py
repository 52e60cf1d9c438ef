"""Qwen2, Qwen3 and their mixtures of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_gguf.architectures.base import Architecture, length, per_layer
from ascend_gguf.architectures.layers import expert_width
from ascend_gguf.architectures.metadata import number
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    MOE_FIELDS,
    NORMS,
    QK_NORM,
    REQUIRED,
    SOFTMAX_ROUTER,
    attention,
    experts,
    mlp,
    shared_expert,
)
from ascend_gguf.reader import GGUFFile

_EXPERT_FIELDS = MOE_FIELDS | {
    "expert_count": "num_experts",
    "expert_feed_forward_length": length("moe_intermediate_size"),
}
_EXPERT_REQUIRED = REQUIRED - {"feed_forward_length"} | {"expert_count", "expert_used_count"}

_SHARED_FIELDS = {"expert_shared_feed_forward_length": length("shared_expert_intermediate_size")}
_SHARED_EXPERT = (
    per_layer("ffn_gate_inp_shexp.weight", "hidden", "mlp.shared_expert_gate.weight"),
    *shared_expert("mlp.shared_expert"),
)


def _shared_width(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, int]:
    """``shared_expert_intermediate_size`` of files before June 2024: that of a dense model."""
    if "shared_expert_intermediate_size" in attributes:
        return {}
    whole = number(file, "feed_forward_length", required=True)
    return {"shared_expert_intermediate_size": whole}


_EVERY_LAYER_IS_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": []}

_BODY = FRAME + NORMS + ATTENTION
_BIASED_BODY = FRAME + NORMS + attention(biased=True)

ARCHITECTURES = (
    Architecture(
        name="qwen2",
        model_type="qwen2",
        fields=FIELDS | HEAD_SIZE,
        required=REQUIRED,
        tensors=_BIASED_BODY + mlp(),
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        fields=FIELDS | HEAD_SIZE,
        required=REQUIRED,
        tensors=_BODY + QK_NORM + mlp(),
    ),
    Architecture(
        name="qwen2moe",
        model_type="qwen2_moe",
        fields=FIELDS | _EXPERT_FIELDS | _SHARED_FIELDS,
        required=_EXPERT_REQUIRED,
        fixed=SOFTMAX_ROUTER | {"expert_weights_norm": (False,)},
        tensors=_BIASED_BODY + experts() + _SHARED_EXPERT,
        # llama.cpp weighs this architecture's experts by the plain softmax.
        constants=_EVERY_LAYER_IS_MOE | {"norm_topk_prob": False},
        derived=(expert_width, _shared_width),
    ),
    Architecture(
        name="qwen3moe",
        model_type="qwen3_moe",
        fields=FIELDS | HEAD_SIZE | _EXPERT_FIELDS,
        required=_EXPERT_REQUIRED,
        fixed=SOFTMAX_ROUTER,
        tensors=_BODY + QK_NORM + experts(),
        # The weights of the chosen experts are renormalised to sum to one.
        constants=_EVERY_LAYER_IS_MOE | {"norm_topk_prob": True},
        derived=(expert_width,),
    ),
)
