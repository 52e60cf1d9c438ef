"""Routing of Qwen3-MoE."""

from __future__ import annotations

from typing import Any


def renormalize_topk(result: None, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Qwen3MoeSparseMoeBlock.__init__``: renormalise the chosen experts' weights.

    The engine switches that off for GGUF; transformers (``norm_topk_prob``) and llama.cpp
    (``build_moe_ffn`` with ``norm_w``) do it, whatever the weights' format.
    """
    config = kwargs["config"] if "config" in kwargs else args[1]
    self.topk.topk_config.renormalize = getattr(config, "norm_topk_prob", True)
