"""Small models whose layers are of several kinds: convolutions, recurrent states and attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hf_models.sizes import EXPERTS
from hf_models.tiny import Tiny

_NO_CONVOLUTION = {"npu": "SGLang has no backend on Ascend for the state of its convolutions"}

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


TINY: dict[str, Tiny] = {
    "lfm2": Tiny(
        "lfm2",
        "lfm2",
        _CONVOLUTION | {"block_auto_adjust_ff_dim": False},
        lfm2_metadata,
        lfm2,
        refused=_NO_CONVOLUTION,
    ),
    "lfm2-moe": Tiny(
        "lfm2moe",
        "lfm2_moe",
        _CONVOLUTION
        | EXPERTS
        | {"num_experts": 4, "num_dense_layers": 1, "tie_word_embeddings": True},
        lfm2_metadata,
        lfm2,
        refused=_NO_CONVOLUTION,
    ),
}
