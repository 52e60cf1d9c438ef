"""Phi-2: loading, and the bias of its output matrix."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.direct_loading import load_directly
from ascend_gguf.srt.models.output_matrix import add_output_bias


def repair_model(model: Any, config: Any) -> None:
    """``PhiForCausalLM``: the bias of logits; weights are loaded as they come.

    The engine's loader holds all of them until it knows the last.
    """
    load_directly(model, r"(?!.*\.[qkv]_proj\.)")
    add_output_bias(model, config)
