"""Routing of Qwen3-MoE."""

from __future__ import annotations

from typing import Any


def renormalize_topk(block: Any, config: Any) -> None:
    """``Qwen3MoeSparseMoeBlock``: renormalise the chosen experts' weights.

    The engine switches that off for GGUF; transformers (``norm_topk_prob``) and llama.cpp
    (``build_moe_ffn`` with ``norm_w``) do it, whatever the weights' format.
    """
    block.topk.topk_config.renormalize = getattr(config, "norm_topk_prob", True)
