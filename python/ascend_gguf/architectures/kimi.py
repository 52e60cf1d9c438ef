"""Kimi Linear: Kimi Delta Attention in most layers, latent attention without RoPE in the others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.deepseek import (
    HEAD_SIZES,
    LATENT_ATTENTION,
    LATENT_FIELDS,
    head_sizes,
)
from ascend_gguf.architectures.fields import count, length, scale
from ascend_gguf.architectures.layers import attends_where_heads, groups
from ascend_gguf.architectures.metadata import Attributes, reads
from ascend_gguf.architectures.parts import (
    FIELDS,
    FRAME,
    NORMS,
    expert_fields,
    experts,
    mlp,
    qkv,
    router_bias,
    shared_expert,
    without,
)
from ascend_gguf.architectures.transforms import log_of_minus
from ascend_gguf.reader import GGUFFile

_KV_HEADS = "attention.head_count_kv"
_layer_types = attends_where_heads("full_attention", "linear_attention")


@reads(_KV_HEADS)
def _layers(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``layer_types``, and the sizes of linear attention in the words of all configurations."""
    types = _layer_types(file, attributes)["layer_types"]
    heads, size = attributes["num_attention_heads"], attributes["linear_key_head_dim"]

    def layers_of(kind: str) -> list[int]:
        return [number for number, other in enumerate(types, 1) if other == kind]

    return {
        "layer_types": types,
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads,
        "linear_value_head_dim": size,
        "linear_attn_config": {
            "head_dim": size,
            "num_heads": heads,
            "short_conv_kernel_size": attributes["linear_conv_kernel_dim"],
            "kda_layers": layers_of("linear_attention"),
            "full_attn_layers": layers_of("full_attention"),
        },
    }


def _of_channels(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """``[channels, 1, kernel]`` of a convolution."""
    return numbers.reshape(-1, 1, numbers.shape[-1])


def _decay(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """``A_log [1, 1, heads, 1]``."""
    return log_of_minus(numbers, config).reshape(1, 1, -1, 1)


def _linear(gguf: str, shape: str, hf: str, **options: Any) -> Rename:
    return per_layer(gguf, shape, f"self_attn.{hf}", kind="linear", **options)


_DELTA_ATTENTION = (
    *qkv(dict.fromkeys("qkv", "linear_v"), "linear"),
    *(
        _linear(
            f"ssm_conv1d_{part}.weight",
            "1 linear_v 1 conv",
            f"{part}_conv1d.weight",
            undo=_of_channels,
            dense=True,
        )
        for part in "qkv"
    ),
    _linear("ssm_f_a.weight", "linear_head hidden", "f_a_proj.weight"),
    _linear("ssm_f_b.weight", "linear_v linear_head", "f_b_proj.weight"),
    _linear("ssm_beta.weight", "linear_heads hidden", "b_proj.weight"),
    _linear("ssm_a", "1 1 linear_heads 1", "A_log", undo=_decay, dense=True),
    _linear("ssm_dt.bias", "linear_v", "dt_bias", dense=True),
    _linear("ssm_g_a.weight", "linear_head hidden", "g_a_proj.weight"),
    _linear("ssm_g_b.weight", "linear_v linear_head", "g_b_proj.weight"),
    _linear("ssm_norm.weight", "linear_head", "o_norm.weight"),
    _linear("attn_output.weight", "hidden linear_v", "o_proj.weight"),
)


def _latent_attention() -> tuple[Rename, ...]:
    """DeepSeek's, in some layers; here the engine's loader joins no matrices."""
    joined = "blk.{layer}.attn_kv_a_mqa.weight"
    return tuple(
        replace(rule, kind="full", dense=rule.dense and rule.gguf != joined)
        for rule in LATENT_ATTENTION
    )


_MOE = "block_sparse_moe"

ARCHITECTURES = (
    Architecture(
        name="kimi-linear",
        model_type="kimi_linear",
        fields=without(FIELDS, _KV_HEADS)
        | LATENT_FIELDS
        | expert_fields("num_experts")
        | {
            "kda.head_dim": "linear_key_head_dim",
            "ssm.conv_kernel": "linear_conv_kernel_dim",
            "expert_shared_count": "num_shared_experts",
            "expert_group_count": length("n_group"),
            "expert_group_used_count": length("topk_group"),
            "expert_weights_scale": scale("routed_scaling_factor"),
            "leading_dense_block_count": count("first_k_dense_replace"),
        },
        defaults={"routed_scaling_factor": 1.0, "first_k_dense_replace": 0},
        reads=HEAD_SIZES,
        fixed={"expert_gating_func": (2,), "expert_weights_norm": (True,)},
        tensors=(
            *FRAME,
            *NORMS,
            *_DELTA_ATTENTION,
            *_latent_attention(),
            *mlp("dense"),
            *experts(_MOE, ("w1", "w3", "w2"), kind="sparse"),
            router_bias(f"{_MOE}.gate.e_score_correction_bias"),
            *shared_expert(f"{_MOE}.shared_experts", kind="sparse"),
        ),
        constants={"moe_renormalize": True, "q_lora_rank": None},
        rope=rope.absent,
        derived=(_layers, head_sizes, groups),
    ),
)
