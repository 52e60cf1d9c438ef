"""MiMo-V2-Flash: values are smaller than keys; layers with a window have more of them, and sinks.

The configuration is in the engine's terms: ``num_key_value_heads`` is of layers without a window.
"""

from __future__ import annotations

from typing import Any

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import length, required, scale
from ascend_gguf.architectures.layers import FULL, SLIDING, of_each_type, sliding_unless
from ascend_gguf.architectures.metadata import Attributes, reads
from ascend_gguf.architectures.parts import (
    FIELDS,
    FRAME,
    HEAD_SIZE,
    NORMS,
    OWN_KV_HEADS,
    WINDOW,
    expert_fields,
    experts,
    mlp,
    qkv,
    router_bias,
)
from ascend_gguf.reader import GGUFFile


def _sizes(file: GGUFFile, attributes: Attributes) -> Attributes:
    kv = of_each_type(file, attributes, "num_key_value_heads", "attention.head_count_kv")
    types, head = attributes["layer_types"], attributes["head_dim"]
    value = attributes.setdefault("v_head_dim", head)
    sparse = [f"blk.{i}.ffn_gate_inp.weight" in file.tensors for i in range(len(types))]
    return {
        "num_key_value_heads": kv[FULL],
        "swa_num_key_value_heads": kv[SLIDING],
        "swa_num_attention_heads": attributes["num_attention_heads"],
        "swa_head_dim": head,
        "v_head_dim": value,
        "swa_v_head_dim": value,
        "hybrid_layer_pattern": [int(kind == SLIDING) for kind in types],
        "mlp_layer_types": ["sparse" if is_sparse else "dense" for is_sparse in sparse],
        "moe_layer_freq": [int(is_sparse) for is_sparse in sparse],
        # One of the engine's does not include the token.
        "sliding_window_size": attributes["sliding_window"] - 1,
        "layernorm_epsilon": attributes["rms_norm_eps"],
    }


def _sinks(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Whether layers of a type have sinks: all of them do, or none."""
    found: dict[str, Any] = {}
    for kind, name in ((FULL, "full"), (SLIDING, "swa")):
        layers = [i for i, type_ in enumerate(attributes["layer_types"]) if type_ == kind]
        have = {f"blk.{i}.attn_sinks.weight" in file.tensors for i in layers}
        if len(have) > 1:
            raise file.error(
                "the layers cannot attend so",
                "attention.sliding_window_pattern",
                found=f"sinks in some layers of {kind}",
                expected="in all, or in none",
            )
        found[f"add_{name}_attention_sink_bias"] = True in have
    return found


@reads("rope.freq_base_swa", "rope.dimension_count")
def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    found, part = rope.by_layer_type(None)(file, attributes), rope.partial_factor(file, attributes)
    return {kind: parameters | part for kind, parameters in found.items()}


_ATTENTION = (
    *qkv({"q": "q", "k": "kv", "v": "kv_heads*v_head"}),
    per_layer("attn_output.weight", "hidden heads*v_head", "self_attn.o_proj.weight"),
    per_layer("attn_sinks.weight", "heads", "self_attn.attention_sink_bias", optional=True),
)


ARCHITECTURES = (
    Architecture(
        name="mimo2",
        model_type="mimo2",
        causal_lm="MiMoV2FlashForCausalLM",
        fields=FIELDS
        | HEAD_SIZE
        | OWN_KV_HEADS
        | expert_fields("n_routed_experts")
        | required(WINDOW)
        | {
            "attention.value_length": length("v_head_dim"),
            "attention.value_scale": scale("attention_value_scale"),
        },
        fixed={"expert_gating_func": (2,), "expert_weights_norm": (True,)},
        constants={
            "hidden_act": "silu",
            "attention_bias": False,
            "norm_topk_prob": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": None,
            "routed_scaling_factor": None,
        },
        tensors=(
            *FRAME,
            *NORMS,
            *_ATTENTION,
            *mlp("dense"),
            *experts(kind="sparse"),
            router_bias("mlp.gate.e_score_correction_bias"),
        ),
        rope=_rope,
        derived=(sliding_unless(6), _sizes, _sinks),
    ),
)
