"""Qwen2, Qwen3, their mixtures of experts, the text of their vision models, and rerankers."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import length
from ascend_gguf.architectures.heads import DECODER_HEAD, is_reranker, labels
from ascend_gguf.architectures.layers import expert_width
from ascend_gguf.architectures.metadata import Attributes, number
from ascend_gguf.architectures.parts import (
    CAUSAL,
    FIELDS,
    HEAD_SIZE,
    NEOX_BIASED_BODY,
    NEOX_BODY,
    OPTIONAL_WIDTH,
    QK_NORM,
    SOFTMAX_ROUTER,
    expert_fields,
    experts,
    mlp,
    shared_expert,
)
from ascend_gguf.reader import GGUFFile

#: Every layer has experts; old files do not say how wide they are.
EXPERT_FIELDS = (
    OPTIONAL_WIDTH
    | expert_fields("num_experts")
    | {"expert_feed_forward_length": length("moe_intermediate_size")}
)

SHARED_FIELDS = {"expert_shared_feed_forward_length": length("shared_expert_intermediate_size")}
SHARED_EXPERT = (
    per_layer("ffn_gate_inp_shexp.weight", "hidden", "mlp.shared_expert_gate.weight"),
    *shared_expert("mlp.shared_expert"),
)


def shared_width(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``shared_expert_intermediate_size`` of files before June 2024: that of a dense model."""
    if "shared_expert_intermediate_size" in attributes:
        return {}
    whole = number(file, "feed_forward_length", required=True)
    return {"shared_expert_intermediate_size": whole}


_EVERY_LAYER_IS_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": []}

_TEXT_MODELS = (
    Architecture(
        name="qwen2",
        model_type="qwen2",
        fields=FIELDS | HEAD_SIZE,
        reads=CAUSAL,
        tensors=NEOX_BIASED_BODY + mlp(),
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        mark=is_reranker,
        fields=FIELDS | HEAD_SIZE,
        # If the file has an output matrix too, the model's class ignores it.
        tensors=NEOX_BODY + QK_NORM + mlp() + (DECODER_HEAD,),
        derived=(labels,),
        causal_lm="Qwen3ForSequenceClassification",
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        fields=FIELDS | HEAD_SIZE,
        reads=CAUSAL,
        tensors=NEOX_BODY + QK_NORM + mlp(),
    ),
    Architecture(
        name="qwen2moe",
        model_type="qwen2_moe",
        fields=FIELDS | EXPERT_FIELDS | SHARED_FIELDS,
        fixed=SOFTMAX_ROUTER | {"expert_weights_norm": (False,)},
        tensors=NEOX_BODY + experts() + SHARED_EXPERT,
        # llama.cpp uses the plain softmax as routing weights of this architecture.
        constants=_EVERY_LAYER_IS_MOE | {"norm_topk_prob": False},
        derived=(expert_width, shared_width),
    ),
    Architecture(
        name="qwen3moe",
        model_type="qwen3_moe",
        fields=FIELDS | HEAD_SIZE | EXPERT_FIELDS,
        fixed=SOFTMAX_ROUTER,
        tensors=NEOX_BODY + QK_NORM + experts(),
        # Top-k routing weights are normalized.
        constants=_EVERY_LAYER_IS_MOE | {"norm_topk_prob": True},
        derived=(expert_width,),
    ),
)

#: Text alone has one position in all sections of the rotary embedding, and a layer adds nothing of
#: a picture to it (deepstack).
_OF_PICTURES = frozenset({"rope.dimension_sections", "n_deepstack_layers"})

#: The text model of each vision model.
_VISION_MODELS = {"qwen2": "qwen2vl", "qwen3": "qwen3vl", "qwen3moe": "qwen3vlmoe"}

ARCHITECTURES = _TEXT_MODELS + tuple(
    replace(text, name=_VISION_MODELS[text.name], reads=text.reads | _OF_PICTURES)
    for text in _TEXT_MODELS
    if text.name in _VISION_MODELS
)
