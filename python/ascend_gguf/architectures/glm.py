"""GLM-4 and its mixture of experts, GLM-4.5."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.layers import groups, has_tensor
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    FUSED_MLP,
    GROUPED_DEFAULTS,
    GROUPED_ROUTING,
    HEAD_SIZE,
    NORMS_AROUND_ATTENTION,
    REQUIRED,
    ROUTED_FIELDS,
    experts,
    mlp,
    shared_expert,
)

#: Of vision models, whose RoPE pairs other rows.
_NO_SECTIONS = {"rope.dimension_sections": (0,)}
_PARTIAL = frozenset({"rope.dimension_count"})

ARCHITECTURES = (
    Architecture(
        name="glm4",
        model_type="glm4",
        fields=FIELDS | HEAD_SIZE,
        required=REQUIRED,
        reads=_PARTIAL,
        fixed=_NO_SECTIONS,
        tensors=(
            *FRAME,
            per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
            per_layer("post_attention_norm.weight", "hidden", "post_self_attn_layernorm.weight"),
            per_layer("ffn_norm.weight", "hidden", "post_attention_layernorm.weight"),
            per_layer("post_ffw_norm.weight", "hidden", "post_mlp_layernorm.weight"),
            *ATTENTION,
            *FUSED_MLP,
        ),
        rope=rope.partial,
        derived=(rope.partial_factor,),
        # vLLM refuses it; llama.cpp accumulates in float32 here (build_ffn says why).
        beyond_float16="GLM-4 is known to be numerically unstable in it",
    ),
    Architecture(
        name="glm4moe",
        model_type="glm4_moe",
        fields=FIELDS | HEAD_SIZE | ROUTED_FIELDS | GROUPED_ROUTING,
        required=REQUIRED | frozenset(ROUTED_FIELDS),
        defaults=GROUPED_DEFAULTS | {"num_nextn_predict_layers": 0},
        reads=_PARTIAL,
        fixed=_NO_SECTIONS | {"expert_gating_func": (2,)},
        tensors=(
            *FRAME,
            *NORMS_AROUND_ATTENTION,
            *ATTENTION,
            per_layer("attn_q_norm.weight", "head", "self_attn.q_norm.weight", optional=True),
            per_layer("attn_k_norm.weight", "head", "self_attn.k_norm.weight", optional=True),
            *mlp("dense"),
            *experts(kind="sparse"),
            per_layer(
                "exp_probs_b.bias", "experts", "mlp.gate.e_score_correction_bias", kind="sparse"
            ),
            *shared_expert("mlp.shared_experts", kind="sparse"),
        ),
        rope=rope.partial,
        derived=(
            groups,
            has_tensor("use_qk_norm", "blk.0.attn_q_norm.weight"),
            rope.partial_factor,
        ),
    ),
)
