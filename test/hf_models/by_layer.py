"""Small models whose layers differ in their sizes, and what llama.cpp's conversion does to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from hf_models.conversion import llama3_factors, llama_metadata, pairs_from_halves
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
}
