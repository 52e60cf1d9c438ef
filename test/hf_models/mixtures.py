"""Small mixtures of experts whose references have other names in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hf_models.conversion import gate_and_up, granitemoe, llama, llama_metadata
from hf_models.sizes import EXPERTS
from hf_models.tiny import Tiny


def _deepseek(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if ".experts." in name:
        name += ".weight"
    for new, part in gate_and_up(name, tensor):
        yield from llama(new, part, config)


def _ocr(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from gate_and_up(f"{name}.weight" if ".experts." in name else name, tensor)


def _deepseek_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
    }


def _ling_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": config.shared_intermediate_size // config.intermediate_size,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "leading_dense_block_count": 0,
    }


def _afmoe_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "attention.sliding_window": config.sliding_window,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.num_shared_experts,
        "expert_weights_scale": config.route_scale,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.num_dense_layers,
    }


def _afmoe(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield name.replace("expert_bias", "expert_bias.bias"), tensor


_softmax = partial(Tiny, model_type="deepseek_ocr2_text", convert=_deepseek)
_UNGATED = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 2, "routed_scaling_factor": 2.5}

MIXTURES: dict[str, Tiny] = {
    "deepseek-moe": _softmax(
        "deepseek",
        sizes=_UNGATED | {"mlp_layer_types": ["dense", "sparse"]},
        metadata=_deepseek_metadata,
    ),
    # Its text; these keys say nothing of it.
    "deepseek-ocr": Tiny(
        "deepseek2-ocr",
        "deepseek_ocr2_text",
        # llama.cpp takes no others.
        _UNGATED
        | {"mlp_layer_types": ["dense", "sparse"], "num_key_value_heads": 4}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        lambda config: (
            _deepseek_metadata(config) | {"rope.dimension_count": 8, "attention.sliding_window": 8}
        ),
        _ocr,
        names="deepseek2",
        twin=True,
    ),
    "ling-unnormalized": _softmax(
        "bailingmoe",
        sizes=_UNGATED | {"mlp_layer_types": ["sparse"] * 2},
        metadata=_deepseek_metadata,
        twin=True,
    ),
    # Its weights are normalized.
    "ling": Tiny(
        "bailingmoe",
        "granitemoeshared",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
        | {"shared_intermediate_size": 128, "attention_multiplier": 32**-0.5},
        _ling_metadata,
        granitemoe,
        twin=True,
    ),
    "trinity": Tiny(
        "afmoe",
        "afmoe",
        EXPERTS
        | {"num_experts": 4, "num_shared_experts": 1, "num_dense_layers": 1, "head_dim": 64}
        | {"num_hidden_layers": 4, "sliding_window": 16, "mup_enabled": True, "route_scale": 2.5},
        _afmoe_metadata,
        _afmoe,
    ),
}
