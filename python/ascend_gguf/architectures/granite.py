"""IBM's Granite and its mixture of experts."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, fraction, scale
from ascend_gguf.architectures.layers import query_scale
from ascend_gguf.architectures.llama import BODY, has_experts
from ascend_gguf.architectures.metadata import number
from ascend_gguf.architectures.parts import (
    FIELDS,
    MLP_BIAS,
    REQUIRED,
    SOFTMAX_ROUTER,
    experts,
    mlp,
    shared_expert,
)

_FIELDS = FIELDS | {
    "attention.scale": scale("attention_multiplier"),
    "embedding_scale": scale("embedding_multiplier"),
    "residual_scale": scale("residual_multiplier"),
    "logit_scale": fraction("logits_scaling"),
}
_REQUIRED = REQUIRED | {"logit_scale"}
_DEFAULTS = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0}
_EXPERT_FIELDS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}

ARCHITECTURES = (
    Architecture(
        name="granite",
        model_type="granite",
        fields=_FIELDS,
        required=_REQUIRED,
        defaults=_DEFAULTS,
        # llama.cpp's switch for no RoPE at all.
        fixed={"rope.scaling.finetuned": (True,)},
        tensors=BODY + mlp() + MLP_BIAS,
        derived=(query_scale,),
    ),
    Architecture(
        name="granitemoe",
        mark=lambda file: not has_experts(file),
        model_type="granite",
        fields=_FIELDS,
        required=_REQUIRED,
        defaults=_DEFAULTS,
        tensors=BODY + mlp() + MLP_BIAS,
        derived=(query_scale,),
    ),
    Architecture(
        name="granitemoe",
        mark=lambda file: bool(number(file, "expert_shared_feed_forward_length", least=0)),
        model_type="granitemoeshared",
        fields=_FIELDS
        | _EXPERT_FIELDS
        | {"expert_shared_feed_forward_length": "shared_intermediate_size"},
        required=_REQUIRED | frozenset(_EXPERT_FIELDS),
        defaults=_DEFAULTS,
        fixed=SOFTMAX_ROUTER,
        tensors=BODY
        + experts("block_sparse_moe")
        + shared_expert("shared_mlp", down="output_linear"),
        derived=(query_scale,),
    ),
    Architecture(
        name="granitemoe",
        model_type="granitemoe",
        fields=_FIELDS | _EXPERT_FIELDS,
        required=_REQUIRED | frozenset(_EXPERT_FIELDS),
        defaults=_DEFAULTS,
        fixed=SOFTMAX_ROUTER,
        # Not the stacked tensors of its checkpoints: the engine also loads single experts.
        tensors=BODY + experts("block_sparse_moe"),
        derived=(query_scale,),
    ),
)
