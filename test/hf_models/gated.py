"""Small models with a gate on what attention gives, and what conversion does to their tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hf_models.conversion import llama_but, window_pattern_metadata
from hf_models.tiny import Tiny


def _muse(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    names = {
        "self_attn.gate_proj.weight": "attn_gate",
        "post_attention_layernorm.weight": "post_attention_norm",
        "pre_feedforward_layernorm.weight": "ffn_norm",
        "post_feedforward_layernorm.weight": "post_ffw_norm",
    }
    if name.endswith("layernorm.weight"):
        tensor = tensor + 1
    yield from llama_but(names, name, tensor, config)


def _muse_metadata(config: Any) -> dict[str, Any]:
    return window_pattern_metadata(config) | {
        "logit_scale": config.output_multiplier,
        "final_logit_softcapping": config.final_logit_softcapping,
    }


def _muse_norms(config: Any) -> dict[str, torch.Tensor]:
    """Those of queries and keys, which conversion makes of a factor."""
    return {
        f"blk.{layer}.attn_{part}_norm.weight": torch.full((config.head_dim,), factor)
        for layer in range(config.num_hidden_layers)
        for part, factor in (("q", config.qk_scale_factor), ("k", 1.0))
    }


TINY: dict[str, Tiny] = {
    "muse-glimmer": Tiny(
        "muse-glimmer",
        "muse_glimmer_text",
        {"num_hidden_layers": 4, "sliding_window": 16, "head_dim": 64, "qk_scale_factor": 2.5}
        | {"output_multiplier": 0.4, "final_logit_softcapping": 2.0},
        _muse_metadata,
        _muse,
        names="llama",
        extra=_muse_norms,
    ),
}
