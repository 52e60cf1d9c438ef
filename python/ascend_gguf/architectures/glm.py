"""GLM-4, its mixture of experts, GLM-4.5, and models that compute what that does."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.layers import groups, has_tensor, shared_count
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    ATTENTION,
    DENSE_OR_SPARSE,
    FIELDS,
    FRAME,
    FUSED_MLP,
    GROUPED_DEFAULTS,
    GROUPED_ROUTING,
    HEAD_SIZE,
    NEOX_BODY,
    NORMS_AROUND_ATTENTION,
    QK_NORM,
    ROUTED_FIELDS,
    UNGROUPED_ROUTING,
    attention,
    expert_fields,
    qk_norm,
    router_bias,
    without,
)
from ascend_gguf.architectures.transforms import pairs_from_halves
from ascend_gguf.reader import GGUFFile

#: Text alone has one position in all sections of the rotary embedding of a vision model.
_SECTIONS = frozenset({"rope.dimension_sections"})

_ROUTER_BIAS = router_bias("mlp.gate.e_score_correction_bias")

_PLAIN_ATTENTION = {
    "use_qk_norm": True,
    "n_group": 1,
    "topk_group": 1,
    "attention_bias": False,
    "partial_rotary_factor": 1.0,
}


def _dense_at_first(file: GGUFFile, attributes: Attributes) -> Attributes:
    layers = range(attributes["num_hidden_layers"])
    sparse = [f"blk.{layer}.ffn_gate_inp.weight" in file.tensors for layer in layers]
    return {"first_k_dense_replace": sparse.index(True) if True in sparse else len(sparse)}


def _glm4(projections: tuple[Rename, ...]) -> tuple[Rename, ...]:
    return (
        *FRAME,
        per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
        per_layer("post_attention_norm.weight", "hidden", "post_self_attn_layernorm.weight"),
        per_layer("ffn_norm.weight", "hidden", "post_attention_layernorm.weight"),
        per_layer("post_ffw_norm.weight", "hidden", "post_mlp_layernorm.weight"),
        *projections,
        *FUSED_MLP,
    )


GLM4 = Architecture(
    name="glm4",
    model_type="glm4",
    fields=FIELDS | HEAD_SIZE,
    reads=_SECTIONS,
    tensors=_glm4(ATTENTION),
    rope=rope.partial,
    derived=(rope.partial_factor,),
    # vLLM refuses it; llama.cpp accumulates in float32 here (build_ffn says why).
    beyond_float16="GLM-4 is known to be numerically unstable in it",
)

ARCHITECTURES = (
    # The converter makes half-split RoPE of a vision model's interleaved one.
    replace(
        GLM4,
        mark=lambda file: "glm4.rope.dimension_sections" in file.metadata,
        tensors=_glm4(attention(pairs_from_halves("heads"), pairs_from_halves("kv_heads"))),
    ),
    GLM4,
    Architecture(
        name="glm4moe",
        model_type="glm4_moe",
        fields=FIELDS | HEAD_SIZE | ROUTED_FIELDS | GROUPED_ROUTING,
        defaults=GROUPED_DEFAULTS | {"num_nextn_predict_layers": 0},
        reads=_SECTIONS,
        fixed={"expert_gating_func": (2,)},
        tensors=(
            *FRAME,
            *NORMS_AROUND_ATTENTION,
            *ATTENTION,
            *qk_norm(optional=True),
            *DENSE_OR_SPARSE,
            _ROUTER_BIAS,
        ),
        rope=rope.partial,
        derived=(
            groups,
            has_tensor("use_qk_norm", "blk.0.attn_q_norm.weight"),
            rope.partial_factor,
        ),
    ),
    # dots.llm1: GLM-4.5 without groups of experts, whose RoPE covers the whole head.
    Architecture(
        name="dots1",
        model_type="glm4_moe",
        fields=FIELDS | HEAD_SIZE | ROUTED_FIELDS | UNGROUPED_ROUTING,
        defaults=GROUPED_DEFAULTS,
        fixed={"expert_gating_func": (2,)},
        tensors=(*NEOX_BODY, *QK_NORM, *DENSE_OR_SPARSE, _ROUTER_BIAS),
        constants=_PLAIN_ATTENTION,
        rope=rope.partial,
    ),
    # Hunyuan 3, as dots.llm1: which layers are dense is to be seen from their tensors.
    Architecture(
        name="hy_v3",
        model_type="glm4_moe",
        fields=FIELDS
        | HEAD_SIZE
        | expert_fields("n_routed_experts")
        | without(UNGROUPED_ROUTING, "leading_dense_block_count"),
        defaults=GROUPED_DEFAULTS,
        fixed={"expert_gating_func": (2,)},
        tensors=(
            *NEOX_BODY,
            *QK_NORM,
            *DENSE_OR_SPARSE,
            replace(_ROUTER_BIAS, gguf="blk.{layer}.exp_probs_b"),
        ),
        constants=_PLAIN_ATTENTION,
        rope=rope.partial,
        derived=(_dense_at_first, shared_count("n_shared_experts", 1)),
    ),
)
