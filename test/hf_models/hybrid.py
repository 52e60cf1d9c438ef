"""Small models whose layers are of several kinds: convolutions, recurrent states and attention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type

from hf_models.conversion import (
    deepseek,
    gate_and_up,
    granite_metadata,
    granitemoe,
    qwen35_metadata,
)
from hf_models.sizes import DELTA_NET, EXPERTS, GRANITE
from hf_models.tiny import Tiny

_CONVOLUTION = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "conv_L_cache": 4,
    "norm_eps": 1e-4,
}


def _kv_heads(config: Any, attention: str) -> dict[str, Any]:
    heads = config.num_key_value_heads
    kinds = config.layer_types
    return {"attention.head_count_kv": [heads if kind == attention else 0 for kind in kinds]}


def lfm2(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if "conv.conv" in name:
        tensor = tensor.squeeze(1)
    if ".experts." in name:
        name = name.removeprefix("model.")
    yield f"{name}.bias" if name.endswith("expert_bias") else name, tensor


def lfm2_metadata(config: Any) -> dict[str, Any]:
    found = _kv_heads(config, "full_attention") | {
        "shortconv.l_cache": config.conv_L_cache,
        "vocab_size": config.vocab_size,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
    }
    if config.model_type == "lfm2_moe":
        found |= {
            "expert_feed_forward_length": config.moe_intermediate_size,
            "leading_dense_block_count": config.num_dense_layers,
            "expert_gating_func": 2,
        }
    return found


def mamba2(name: str, tensor: torch.Tensor, groups: int) -> tuple[str, torch.Tensor]:
    """What conversion does to the layer of Mamba-2."""
    if name.endswith("conv1d.weight"):
        tensor = tensor.squeeze()
    elif name.endswith("A_log"):
        tensor = -tensor.exp().unsqueeze(-1)
    elif name.endswith(".D"):
        tensor = tensor.unsqueeze(-1)
    elif name.endswith(("mamba.norm.weight", "mixer.norm.weight")):
        tensor = tensor.view(groups, -1)
    return name.replace("dt_bias", "dt_proj.bias"), tensor


def granite4(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    dense = not config.num_local_experts
    if ".mamba." in name:
        yield mamba2(name, tensor, config.mamba_n_groups)
    elif dense and "shared_mlp" in name:
        layer = name.split(".")[2]
        parts = ("gate", "up") if "input" in name else ("down",)
        for part, rows in zip(parts, tensor.chunk(len(parts)), strict=True):
            yield f"=blk.{layer}.ffn_{part}.weight", rows
    else:
        yield from granitemoe(name, tensor, config)


def granite4_metadata(config: Any) -> dict[str, Any]:
    return (
        granite_metadata(config)
        | _kv_heads(config, "full_attention")
        | {
            "rope.scaling.finetuned": False,
            "expert_shared_feed_forward_length": config.shared_intermediate_size,
            "ssm.conv_kernel": config.mamba_d_conv,
            "ssm.state_size": config.mamba_d_state,
            "ssm.group_count": config.mamba_n_groups,
            "ssm.time_step_rank": config.mamba_n_heads,
            "ssm.inner_size": config.mamba_n_heads * config.mamba_d_head,
        }
    )


def nemotron(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if ".mixer." in name and "experts" not in name:
        name, tensor = mamba2(name, tensor, config.n_groups)
    if ".mixer.experts." in name:
        name = name.replace("backbone", "model").replace("mixer", "mlp")
    yield name, tensor


def mamba2_metadata(config: Any) -> dict[str, Any]:
    return {
        "attention.head_count": 0,
        "attention.head_count_kv": None,
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "feed_forward_length": 0,
        "rope.freq_base": None,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.state_size": config.state_size,
        "ssm.group_count": config.n_groups,
        "ssm.time_step_rank": config.num_heads,
        "ssm.inner_size": config.num_heads * config.head_dim,
    }


def nemotron_metadata(config: Any) -> dict[str, Any]:
    kinds = config.hybrid_override_pattern
    moe = "E" in kinds
    width = config.moe_intermediate_size if moe else config.intermediate_size
    found = {
        "attention.head_count_kv": [config.num_key_value_heads * (kind == "*") for kind in kinds],
        "feed_forward_length": [width * (kind in "-E") for kind in kinds],
        "attention.layer_norm_rms_epsilon": config.layer_norm_epsilon,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": None,
        "ssm.conv_kernel": config.conv_kernel,
        "ssm.state_size": config.ssm_state_size,
        "ssm.group_count": config.n_groups,
        "ssm.time_step_rank": config.mamba_num_heads,
        "ssm.inner_size": config.mamba_num_heads * config.mamba_head_dim,
    }
    if moe:
        found |= {
            "expert_feed_forward_length": width,
            "expert_shared_feed_forward_length": config.moe_shared_expert_intermediate_size,
            "expert_shared_count": config.n_shared_experts,
            "expert_weights_norm": config.norm_topk_prob,
            "expert_weights_scale": config.routed_scaling_factor,
            "moe_latent_size": config.moe_latent_size,
        }
    else:
        experts = "count", "used_count", "group_count", "group_used_count"
        found |= {f"expert_{key}": None for key in experts}
    return found


_NEMOTRON = {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "mamba_num_heads": 8,
    "mamba_head_dim": 32,
    "n_groups": 2,
    "ssm_state_size": 16,
    "conv_kernel": 3,
    "chunk_size": 32,
    "layer_norm_epsilon": 1e-4,
    "rope_parameters": None,
}

_GRANITE_4 = GRANITE | {
    # Logits that are doubled double what is lost in float16: 0.009 by transformers itself.
    "logits_scaling": 2.0,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention", "linear_attention", "linear_attention"],
    "mamba_n_heads": 8,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 32,
    # Of no layer.
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}


def falcon_h1(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield mamba2(name, tensor, config.mamba_n_groups)


def falcon_h1_metadata(config: Any) -> dict[str, Any]:
    return {
        "ssm.conv_kernel": config.mamba_d_conv,
        "ssm.state_size": config.mamba_d_state,
        "ssm.group_count": config.mamba_n_groups,
        "ssm.time_step_rank": config.mamba_n_heads,
        "ssm.inner_size": config.mamba_d_ssm,
    }


_FALCON_H1 = {
    "head_dim": 64,
    "mamba_d_ssm": 192,
    "mamba_n_heads": 6,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_d_conv": 3,
    "mamba_chunk_size": 32,
}


def qwen3next(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """As Qwen3.5, but heads stay in their order, and projections are taken apart."""
    if not name.endswith("in_proj_qkvz.weight"):
        yield from qwen3next_merged(name, tensor, config)
        return
    layer = name.split(".")[2]
    keys, size = config.linear_num_key_heads, config.linear_key_head_dim
    values = config.linear_num_value_heads // keys * config.linear_value_head_dim
    by_head = tensor.view(keys, -1, tensor.shape[-1])
    parts = by_head.split([size, size, values, values], dim=1)
    *qkv, z = (part.reshape(-1, tensor.shape[-1]) for part in parts)
    yield f"=blk.{layer}.attn_qkv.weight", torch.cat(qkv)
    yield f"=blk.{layer}.attn_gate.weight", z


def qwen3next_merged(
    name: str, tensor: torch.Tensor, config: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """As the converter of 2025 left them: in one tensor."""
    if name.endswith("in_proj_qkvz.weight"):
        name = f"=blk.{name.split('.')[2]}.ssm_in.weight"
    elif "conv1d" in name:
        tensor = tensor.squeeze()
    elif name.endswith("norm.weight") and "linear_attn" not in name:
        tensor = tensor + 1
    elif name.endswith("A_log"):
        tensor = -tensor.exp()
    name = name.replace("dt_bias", "dt_proj.bias")
    if re.search(r"experts\.\w+_proj$", name):
        name += ".weight"
    yield from gate_and_up(name, tensor)


def kimi(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    # So transformers calls the networks of dense layers too.
    name = re.sub(r"block_sparse_moe\.(\w+_proj)", r"mlp.\1", name)
    if name.endswith("conv1d.weight"):
        tensor = tensor.view(1, len(tensor), 1, -1)
    elif name.endswith("A_log"):
        tensor = -tensor.exp()
    if match := re.search(r"block_sparse_moe\.experts\.w(\d)", name):
        part = {"1": "gate", "2": "down", "3": "up"}[match[1]]
        yield f"=blk.{name.split('.')[2]}.ffn_{part}_exps.weight", tensor
    else:
        yield from deepseek(name.replace("dt_bias", "dt_proj.bias"), tensor, config)


def kimi_metadata(config: Any) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "attention.head_count_kv": [int(kind == "full_attention") for kind in config.layer_types],
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": None,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "kda.head_dim": config.linear_head_dim,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_gating_func": 2,
    }


TINY: dict[str, Tiny] = {
    "kimi-linear": Tiny(
        "kimi-linear",
        "kimi_linear",
        {"num_hidden_layers": 3, "num_key_value_heads": 4, "first_k_dense_replace": 2}
        | {"moe_intermediate_size": 64, "num_experts_per_token": 2, "num_experts": 8}
        | {"routed_scaling_factor": 1.5}
        # Ascend's operators take these alone.
        | {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
        | {"v_head_dim": 128}
        | {
            "linear_attn_config": {
                "head_dim": 32,
                "num_heads": 4,
                "short_conv_kernel_size": 3,
                "kda_layers": [1, 3],
                "full_attn_layers": [2],
            }
        }
        # transformers has no other for norms of latents.
        | {"rms_norm_eps": 1e-6, "rope_parameters": None},
        kimi_metadata,
        kimi,
        npu_dtype="bfloat16",
    ),
    # Two value heads for a key head, larger ones, and experts as Qwen3.5 has them.
    "qwen3-next": Tiny(
        "qwen3next",
        "qwen3_next",
        DELTA_NET
        | EXPERTS
        | {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_experts": 4}
        | {"shared_expert_intermediate_size": 96, "linear_value_head_dim": 64}
        # Not every n-th layer attends to everything.
        | {
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "linear_attention", "full_attention"],
        },
        qwen35_metadata,
        qwen3next,
        types={"attn_gate.weight": Type.Q4_0, "ssm_ba.weight": Type.Q5_1},
    ),
    "lfm2": Tiny(
        "lfm2",
        "lfm2",
        _CONVOLUTION | {"block_auto_adjust_ff_dim": False},
        lfm2_metadata,
        lfm2,
    ),
    "lfm2-moe": Tiny(
        "lfm2moe",
        "lfm2_moe",
        _CONVOLUTION
        | EXPERTS
        | {"num_experts": 4, "num_dense_layers": 1, "tie_word_embeddings": True},
        lfm2_metadata,
        lfm2,
    ),
    "granite-4": Tiny(
        "granitehybrid",
        "granitemoehybrid",
        _GRANITE_4
        | {"num_local_experts": 4, "shared_intermediate_size": 96, "mamba_proj_bias": True},
        granite4_metadata,
        granite4,
    ),
    # Of one matrix for embedding and output, as all of them are.
    "granite-4-dense": Tiny(
        "granitehybrid",
        "granitemoehybrid",
        _GRANITE_4
        | {"num_local_experts": 0, "num_experts_per_tok": 0, "shared_intermediate_size": 160}
        | {"tie_word_embeddings": True},
        granite4_metadata,
        granite4,
    ),
    # Of one group of heads: transformers' norm knows no others.
    "mamba2": Tiny(
        "mamba2",
        "mamba2",
        {"num_hidden_layers": 3, "expand": 2, "num_heads": 8, "head_dim": 32, "n_groups": 1}
        | {"intermediate_size": 256, "state_size": 64, "conv_kernel": 3, "chunk_size": 16}
        | {"layer_norm_epsilon": 1e-4, "tie_word_embeddings": True}
        # Of what the engine takes for attention.
        | {"num_attention_heads": 8, "num_key_value_heads": 8, "rope_parameters": None},
        mamba2_metadata,
        nemotron,
    ),
    "nemotron-h": Tiny(
        "nemotron_h",
        "nemotron_h",
        _NEMOTRON | {"hybrid_override_pattern": "M-*-M"},
        nemotron_metadata,
        nemotron,
    ),
    # As Nemotron 3 Super; Nano has no latent vectors.
    "nemotron-h-moe": Tiny(
        "nemotron_h_moe",
        "nemotron_h",
        _NEMOTRON
        | EXPERTS
        | {"hybrid_override_pattern": "ME*EM", "n_routed_experts": 8, "routed_scaling_factor": 2.5}
        # Of no layer, and in a file that of experts.
        | {"intermediate_size": 64}
        | {"moe_shared_expert_intermediate_size": 96, "moe_latent_size": 64}
        | {"n_group": 2, "topk_group": 1},
        nemotron_metadata,
        nemotron,
    ),
    "falcon-h1": Tiny(
        "falcon-h1",
        "falcon_h1",
        _FALCON_H1 | {"tie_word_embeddings": True},
        falcon_h1_metadata,
        falcon_h1,
    ),
}
