"""Latent attention of MiniCPM 3, whose weights may be replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ascend_gguf.srt.overrides import override_methods


def keep_projections(model: Any, config: Any) -> None:
    """``MiniCPM3ForCausalLM``: the engine copies parts of a projection, and deletes it.

    Weights of another file could not be loaded any more.
    """
    override_methods(model, load_weights=_load_weights)


def _load_weights(
    original: Callable, self: Any, weights: Iterable[tuple[str, torch.Tensor]]
) -> None:
    projections = [layer.self_attn.kv_b_proj for layer in self.model.layers]
    original(self, weights)
    for layer, projection in zip(self.model.layers, projections, strict=True):
        attention = layer.self_attn
        attention.kv_b_proj = projection
        sizes = [attention.qk_nope_head_dim, attention.v_head_dim]
        keys, values = projection.weight.unflatten(0, (-1, sum(sizes))).split(sizes, 1)
        attention.w_kc, attention.w_vc = keys, values.transpose(1, 2)
