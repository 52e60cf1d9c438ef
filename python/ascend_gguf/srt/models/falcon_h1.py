"""Layers of Falcon-H1."""

from __future__ import annotations

from typing import Any


def drop_norms(layer: Any, config: Any) -> None:
    """``FalconH1HybridAttentionDecoderLayer``: norms that nothing uses are not required."""
    del layer.q_norm, layer.k_norm
