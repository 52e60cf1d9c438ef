"""Small models whose layers differ in their sizes, and what llama.cpp's conversion does to them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from hf_models.conversion import (
    gate_and_up,
    llama3_factors,
    llama_metadata,
    pairs_from_halves,
    window_pattern_metadata,
)
from hf_models.tiny import Tiny


def _blocks(config: Any) -> list[tuple[int, int, int]]:
    """Query heads, key-value heads and the width of each layer of a DeciLM."""
    from hf_models.deci import blocks_of, ffn_width

    heads, found = config.num_attention_heads, []
    for block in blocks_of(config):
        attention, multiple = block["attention"], block["ffn"]["ffn_mult"]
        group = attention["n_heads_in_group"]
        queries = heads if group or attention["replace_with_linear"] else 0
        width = ffn_width(multiple, config.hidden_size) if multiple else 0
        if not getattr(config, "block_configs", None):
            width = config.intermediate_size
        found.append((queries, heads // group if group else 0, width))
    return found


def deci(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if "q_proj" in name or "k_proj" in name:
        queries, keys, _ = _blocks(config)[int(name.split(".")[2])]
        tensor = pairs_from_halves(tensor, queries if "q_proj" in name else keys)
    yield name, tensor


def deci_metadata(config: Any) -> dict[str, Any]:
    queries, keys, widths = (list(part) for part in zip(*_blocks(config), strict=True))
    keys_alone = {"attention.head_count_kv": keys}
    every = {"attention.head_count": queries, "feed_forward_length": widths} | keys_alone
    published = getattr(config, "block_configs", None)
    return llama_metadata(config) | (every if published else keys_alone)


def _block(group: int | None, multiple: float | None, matrix: bool = False) -> dict[str, Any]:
    attention = {"n_heads_in_group": group, "replace_with_linear": matrix}
    return {"attention": attention, "ffn": {"ffn_mult": multiple}}


_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def step(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if re.search(r"experts\.\w+_proj$", name):
        name += ".weight"
    elif name.endswith("norm.weight"):
        tensor = tensor + 1
    yield from gate_and_up(name, tensor)


def step_metadata(config: Any) -> dict[str, Any]:
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    heads = (config.per_layer_config[i].num_attention_heads for i in range(len(sliding)))
    return window_pattern_metadata(config) | {
        "attention.head_count": list(heads),
        "attention.head_count_kv": [config.num_key_value_heads] * len(sliding),
        "rope.dimension_count": config.head_dim,
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_feed_forward_length": config.share_expert_dim,
        "expert_weights_scale": config.moe_router_scaling_factor,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        "swiglu_clamp_exp": config.swiglu_limits,
        "swiglu_clamp_shexp": config.swiglu_limits_shared,
    }


def step_factors(config: Any) -> dict[str, torch.Tensor]:
    """Of the half that is turned in layers without a window; the others are ones."""
    found = llama3_factors(
        SimpleNamespace(
            rope_parameters=config.rope_parameters["full_attention"], head_dim=config.head_dim // 2
        )
    )
    factors = torch.ones(config.head_dim // 2)
    factors[: config.head_dim // 4] = found["rope_freqs.weight"]
    return {"rope_freqs.weight": factors}


def laguna(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield name.replace("experts.e_score", "gate.e_score"), tensor


def laguna_metadata(config: Any) -> dict[str, Any]:
    turned = {
        kind: int(config.head_dim * parameters["partial_rotary_factor"])
        for kind, parameters in config.rope_parameters.items()
    }
    return {
        "attention.head_count": config.num_attention_heads_per_layer,
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config.layer_types
        ],
        "rope.dimension_count": turned["full_attention"],
        "rope.dimension_count_swa": turned["sliding_attention"],
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
        "expert_weights_scale": config.moe_routed_scaling_factor,
        "expert_weights_norm": True,
        "expert_gating_func": 2,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
    }


_LAGUNA = {
    "num_hidden_layers": 4,
    "head_dim": 32,
    "sliding_window": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 96,
    "moe_routed_scaling_factor": 1.5,
    "rope_parameters": {
        "full_attention": {
            "rope_type": "yarn",
            "rope_theta": 400000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "original_max_position_embeddings": 512,
            "partial_rotary_factor": 0.5,
        },
        "sliding_attention": {
            "rope_type": "default",
            "rope_theta": 20000.0,
            "partial_rotary_factor": 1.0,
        },
    },
}


def spark(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    layer = name.split(".")[2] if "layers" in name else ""
    yield f"=blk.{layer}.attn_qkv.weight" if "q_k_v_proj" in name else name, tensor


def spark_metadata(config: Any) -> dict[str, Any]:
    parameters = config.rope_parameters
    full, sliding = (
        int(config.head_dim * parameters[f"{kind}_attention"]["partial_rotary_factor"])
        for kind in ("full", "sliding")
    )
    return window_pattern_metadata(config) | {
        "rope.dimension_count": full,
        "rope.dimension_count_swa": sliding,
        "rope.freq_base_swa": parameters["sliding_attention"]["rope_theta"],
        "expert_count": None,
        "expert_used_count": None,
    }


def mimo(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield re.sub(r"(sinks|attention_sink_bias)$", "sinks.weight", name), tensor


def mimo_metadata(config: Any) -> dict[str, Any]:
    own = config.num_key_value_heads
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    rope = config.rope_parameters
    return window_pattern_metadata(config) | {
        "attention.head_count_kv": [own * (1 + slides) for slides in sliding],
        "attention.value_length": config.v_head_dim,
        "attention.value_scale": config.attention_value_scale,
        "rope.dimension_count": int(
            config.head_dim * rope["full_attention"]["partial_rotary_factor"]
        ),
        "rope.freq_base_swa": rope["sliding_attention"]["rope_theta"],
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_group_count": None,
        "expert_group_used_count": None,
    }


TINY: dict[str, Tiny] = {
    # As Super 49B, Ultra 253B and 51B: without attention, with a matrix in its place, and nothing.
    "nemotron-super": Tiny(
        "deci",
        "nemotron-nas",
        {"num_hidden_layers": 6, "head_dim": 32, "rope_parameters": _LLAMA3}
        # The greatest.
        | {"intermediate_size": 512, "num_key_value_heads": 4}
        | {
            "block_configs": [
                _block(None, 3.0),
                _block(2, 6.0),
                _block(None, 3.0, matrix=True),
                _block(None, None),
                _block(1, 3.0),
                _block(2, 3.0),
            ]
        },
        deci_metadata,
        deci,
        extra=llama3_factors,
    ),
    "decilm-7b": Tiny(
        "deci",
        "nemotron-nas",
        {"num_hidden_layers": 3, "head_dim": 32, "num_key_value_heads": 4}
        | {"num_key_value_heads_per_layer": [4, 2, 4]},
        deci_metadata,
        deci,
    ),
    "step-3.5": Tiny(
        "step35",
        "step3p5",
        {"num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, "pad_token_id": 0}
        | {"layer_types": ["full_attention", "sliding_attention"] * 2}
        | {"mlp_layer_types": ["dense"] + ["sparse"] * 3, "num_sliding_attention_heads": 8}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        | {"share_expert_dim": 96, "moe_router_scaling_factor": 1.5}
        | {"swiglu_limits": [0.0, 0.0, 0.3, 0.2], "swiglu_limits_shared": [0.3, 0.0, 0.0, 0.2]}
        | {
            "rope_parameters": {
                "full_attention": _LLAMA3 | {"partial_rotary_factor": 0.5},
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 20000.0,
                    "partial_rotary_factor": 1.0,
                },
            }
        },
        step_metadata,
        step,
        extra=step_factors,
    ),
    "laguna-xs": Tiny(
        "laguna",
        "laguna",
        # The converter takes every fourth layer for one without a window, from the first.
        _LAGUNA
        | {"layer_types": ["full_attention"] + ["sliding_attention"] * 3, "num_attention_heads": 8}
        | {"num_attention_heads_per_layer": [4, 8, 8, 8]},
        laguna_metadata,
        laguna,
        names="step35",
    ),
    # As M: gates of numbers.
    "laguna-m": Tiny(
        "laguna",
        "laguna",
        _LAGUNA
        # Through more layers float16 chooses other experts.
        | {"num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]}
        | {"gating": "per-element"},
        laguna_metadata,
        laguna,
        names="step35",
        twin=True,
    ),
    "spark-2.5": Tiny(
        "spark2_5",
        "spark",
        {"num_hidden_layers": 4, "head_dim": 32, "sliding_window": 16, "num_attention_heads": 8}
        | {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
        | {"mlp_layer_types": ["dense"] * 4, "hidden_act": "gelu_pytorch_tanh"}
        | {
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "default",
                    "rope_theta": 400000.0,
                    "partial_rotary_factor": 0.5,
                },
                "sliding_attention": {
                    "rope_type": "default",
                    "rope_theta": 20000.0,
                    "partial_rotary_factor": 1.0,
                },
            }
        },
        spark_metadata,
        spark,
        joined={
            "self_attn.q_k_v_proj.weight": tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
        },
        names="step35",
    ),
    "mimo-v2-flash": Tiny(
        "mimo2",
        "mimo_v2_flash",
        {"num_hidden_layers": 3, "head_dim": 48, "v_head_dim": 32, "sliding_window": 16}
        | {"layer_types": ["full_attention"] + ["sliding_attention"] * 2}
        | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
        | {
            "rope_parameters": {
                f"{kind}_attention": {
                    "rope_type": "default",
                    "rope_theta": theta,
                    "partial_rotary_factor": 1 / 3,
                }
                for kind, theta in (("full", 400000.0), ("sliding", 20000.0))
            }
        },
        mimo_metadata,
        mimo,
    ),
}
