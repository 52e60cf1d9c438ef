"""The activation of Gemma, and loading of its norms."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.activation import GeluAndMul

from ascend_gguf.srt.models.direct_loading import load_directly


def repair_activation(mlp: Any, config: Any) -> None:
    """``GemmaMLP``: the approximation by tanh, which the model was trained with."""
    mlp.act_fn = GeluAndMul("tanh")


def repair_loading(model: Any, config: Any) -> None:
    """``GemmaForCausalLM``: norms multiply by what the file has; the engine would add one."""
    load_directly(model, r".*norm\.weight")
