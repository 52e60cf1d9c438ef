"""Dense layers of Cohere's mixture of experts."""

from __future__ import annotations

from typing import Any


def count_dense_layers(config: Any) -> None:
    """Say how many layers are dense; transformers' configuration has a list of them alone."""
    config.first_k_dense_replace = config.mlp_layer_types.count("dense")
