"""What llama.cpp's conversion does to the models of :mod:`hf_models.dense`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from hf_models.conversion import (
    partial_rope_metadata,
    window_pattern_metadata,
)


def apertus(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if "act_fn" not in name:
        yield name, tensor


def apertus_numbers(tensors: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for name in sorted(name for name in tensors if "act_fn" in name):
        found.setdefault(f"xielu.{name.rpartition('.')[2]}", []).append(tensors[name].item())
    return found


def gpt2(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    is_matrix = name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight"))
    yield name, tensor.T if is_matrix else tensor


def gpt_metadata(config: Any) -> dict[str, Any]:
    return {
        "feed_forward_length": 4 * config.n_embd,
        "attention.head_count_kv": 1 if config.model_type == "gpt_bigcode" else None,
        "attention.layer_norm_epsilon": config.layer_norm_epsilon,
    }


def phi2_metadata(config: Any) -> dict[str, Any]:
    return partial_rope_metadata(config) | {
        "feed_forward_length": 4 * config.hidden_size,
        "rope.freq_base": None,
    }


def dots_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_gating_func": 2,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
    }


def stablelm_metadata(config: Any) -> dict[str, Any]:
    return partial_rope_metadata(config) | {
        "use_parallel_residual": config.use_parallel_residual,
        "rope.freq_base": None,
    }


def olmo_metadata(config: Any) -> dict[str, Any]:
    return {"attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": config.clip_qkv}


def chatglm_metadata(config: Any) -> dict[str, Any]:
    return partial_rope_metadata(config) | {
        "attention.key_length": None,
        "attention.value_length": None,
    }


def qwen_metadata(config: Any) -> dict[str, Any]:
    return {"feed_forward_length": 2 * config.intermediate_size}


def minicpm_metadata(config: Any) -> dict[str, Any]:
    return {
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def hy_v3_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_feed_forward_length": config.moe_intermediate_size
        * config.num_shared_experts,
        "expert_gating_func": 2,
        "expert_weights_scale": config.router_scaling_factor,
        "expert_weights_norm": True,
    }


def exaone_moe_metadata(config: Any) -> dict[str, Any]:
    return window_pattern_metadata(config) | {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_feed_forward_length": config.moe_intermediate_size
        * config.num_shared_experts,
        "expert_shared_count": config.num_shared_experts,
        "expert_gating_func": 2,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_group_count": None,
        "expert_group_used_count": None,
        "rope.scaling.type": "none",
    }


def mellum_metadata(config: Any) -> dict[str, Any]:
    return window_pattern_metadata(config) | {
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
        "expert_feed_forward_length": config.moe_intermediate_size,
    }


def cohere2_moe_metadata(config: Any) -> dict[str, Any]:
    return window_pattern_metadata(config) | {
        "logit_scale": config.logit_scale,
        "feed_forward_length": config.prefix_dense_intermediate_size,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_feed_forward_length": config.intermediate_size * config.num_shared_experts,
        "expert_shared_count": config.num_shared_experts,
        "expert_gating_func": 2,
        "expert_weights_norm": config.norm_topk_prob,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        "rope.dimension_count": config.head_dim,
        "rope.scaling.type": "none",
    }


def dbrx(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    parts = {"w1": "gate", "v1": "up", "w2": "down"}
    if ".experts." in name:
        layer, part = name.split(".")[2], parts[name.rpartition(".")[2]]
        matrices = tensor.view(config.ffn_config.moe_num_experts, -1, config.d_model)
        matrices = matrices.transpose(1, 2) if part == "down" else matrices
        name, tensor = f"=blk.{layer}.ffn_{part}_exps.weight", matrices
    yield name, tensor


def dbrx_metadata(config: Any) -> dict[str, Any]:
    return {
        "feed_forward_length": config.ffn_config.ffn_hidden_size,
        "attention.clamp_kqv": config.attn_config.clip_qkv,
        "attention.layer_norm_epsilon": 1e-5,
        "expert_count": config.ffn_config.moe_num_experts,
        "expert_used_count": config.ffn_config.moe_top_k,
    }
