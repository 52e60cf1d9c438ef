"""IBM's Granite and its mixture of experts."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, fraction
from ascend_gguf.architectures.llama import BODY
from ascend_gguf.architectures.parts import FIELDS, REQUIRED, experts, mlp

_FIELDS = FIELDS | {
    "attention.scale": fraction("attention_multiplier"),
    "embedding_scale": fraction("embedding_multiplier"),
    "residual_scale": fraction("residual_multiplier"),
    "logit_scale": fraction("logits_scaling"),
}
_EXPERT_FIELDS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}

ARCHITECTURES = (
    Architecture(
        name="granite",
        model_type="granite",
        fields=_FIELDS,
        required=REQUIRED | {"logit_scale"},
        tensors=BODY + mlp(),
    ),
    Architecture(
        name="granitemoe",
        model_type="granitemoe",
        fields=_FIELDS | _EXPERT_FIELDS,
        required=REQUIRED | {"logit_scale"} | frozenset(_EXPERT_FIELDS),
        # Not the packed tensors of its checkpoints: the engine takes single experts as well.
        tensors=BODY + experts("block_sparse_moe"),
    ),
)
