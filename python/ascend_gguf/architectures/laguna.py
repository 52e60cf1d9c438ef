"""Laguna: layers differ in their query heads, and those with a window have RoPE of their own."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import count, length, required, scale
from ascend_gguf.architectures.layers import dense_layers, each_layer, sliding_unless
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    NORMS,
    OWN_HEADS,
    QK_NORM,
    WINDOW,
    expert_fields,
    experts,
    mlp,
    router_bias,
    shared_expert,
)
from ascend_gguf.reader import GGUFFile

_GATE = "self_attn.g_proj.weight"


@reads("expert_shared_count")
def _sizes(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Heads of each layer, whether a gate is of a head or of each number, and a shared width."""
    heads = each_layer(attributes, "num_attention_heads")
    gate = file.tensors.get("blk.0.attn_gate.weight")
    is_of_heads = gate is None or gate.shape[0] == heads[0]
    shared = attributes.get("shared_expert_intermediate_size")
    if shared is None:
        experts = number(file, "expert_shared_count", least=0)
        shared = attributes["moe_intermediate_size"] * (1 if experts is None else experts)
    return {
        "num_attention_heads_per_layer": heads,
        "gating": "per-head" if is_of_heads else "per-element",
        "shared_expert_intermediate_size": shared,
    }


ARCHITECTURES = (
    Architecture(
        name="laguna",
        # The engine's own configuration of this name is in words that follow from these.
        model_type="laguna_text",
        causal_lm="LagunaForCausalLM",
        fields=FIELDS
        | HEAD_SIZE
        | OWN_HEADS
        | expert_fields("num_experts")
        | WINDOW
        | required({"leading_dense_block_count": count("first_k_dense_replace")})
        | {
            "expert_shared_feed_forward_length": length("shared_expert_intermediate_size"),
            "expert_weights_scale": scale("moe_routed_scaling_factor"),
        },
        defaults={"moe_routed_scaling_factor": 1.0},
        fixed={"expert_gating_func": (2,), "expert_weights_norm": (True,)},
        constants={
            "hidden_act": "silu",
            "attention_bias": False,
            "moe_router_score_func": "sigmoid",
            "moe_router_logit_softcapping": 0.0,
            "moe_apply_router_weight_on_input": False,
        },
        tensors=(
            *FRAME,
            *NORMS,
            *ATTENTION,
            *QK_NORM,
            per_layer("attn_gate.weight", "heads hidden", _GATE, kind="gated_heads"),
            per_layer("attn_gate.weight", "q hidden", _GATE, kind="gated"),
            *mlp("dense"),
            *experts(kind="sparse"),
            router_bias("mlp.gate.e_score_correction_bias"),
            *shared_expert("mlp.shared_expert", kind="sparse"),
        ),
        rope=rope.partial_by_layer_type(),
        derived=(sliding_unless(4, first=True), dense_layers, _sizes),
    ),
)
