"""LFM2: a short convolution in most layers, and attention in some."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import count, fraction
from ascend_gguf.architectures.layers import attends_where_heads
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    EMBEDDING,
    FIELDS,
    OUTPUT,
    RMS_NORM_EPSILON,
    attention,
    expert_fields,
    experts,
    mlp,
    qk_norm,
    router_bias,
    without,
)
from ascend_gguf.architectures.transforms import with_channel
from ascend_gguf.reader import GGUFFile

_FIELDS = without(FIELDS, "attention.head_count_kv") | {
    RMS_NORM_EPSILON: fraction("norm_eps"),
    "shortconv.l_cache": "conv_L_cache",
}
_NAMES = ("w1", "w3", "w2")


_BODY = (
    EMBEDDING,
    OUTPUT,
    Rename("token_embd_norm.weight", "hidden", "model.embedding_norm.weight"),
    per_layer("attn_norm.weight", "hidden", "operator_norm.weight"),
    per_layer("ffn_norm.weight", "hidden", "ffn_norm.weight"),
    *attention(kind="full", output="self_attn.out_proj"),
    *qk_norm("self_attn.q_layernorm", "self_attn.k_layernorm", kind="full"),
    per_layer("shortconv.in_proj.weight", "3*hidden hidden", "conv.in_proj.weight", kind="conv"),
    per_layer("shortconv.out_proj.weight", "hidden hidden", "conv.out_proj.weight", kind="conv"),
    per_layer(
        "shortconv.conv.weight",
        "hidden conv",
        "conv.conv.weight",
        undo=with_channel,
        dense=True,
        kind="conv",
    ),
)
_DERIVED = (attends_where_heads("full_attention", "conv"),)


def _router(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"use_expert_bias": any(name.endswith("exp_probs_b.bias") for name in file.tensors)}


ARCHITECTURES = (
    Architecture(
        name="lfm2",
        model_type="lfm2",
        fields=_FIELDS,
        tensors=_BODY + mlp("", "feed_forward", _NAMES),
        constants={"block_auto_adjust_ff_dim": False, "conv_bias": False},
        derived=_DERIVED,
    ),
    Architecture(
        name="lfm2moe",
        model_type="lfm2_moe",
        fields=_FIELDS
        | expert_fields("num_experts")
        | {"leading_dense_block_count": count("num_dense_layers")},
        defaults={"num_dense_layers": 0},
        fixed={"expert_gating_func": (2,), "expert_weights_norm": (True,)},
        tensors=(
            *_BODY,
            *mlp("dense", "feed_forward", _NAMES),
            *experts("feed_forward", _NAMES, kind="sparse"),
            router_bias("feed_forward.expert_bias", "sparse biased_router"),
        ),
        constants={"conv_bias": False, "norm_topk_prob": True, "routed_scaling_factor": 1.0},
        derived=(*_DERIVED, _router),
    ),
)
