"""Loading of Granite's mixtures of experts."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.direct_loading import load_parts
from ascend_gguf.srt.models.single_experts import load_experts_one_by_one


def repair_loading(model: Any, config: Any) -> None:
    """A repair: gate and up of the shared expert are apart in a file."""
    names = r"(?<=\bshared_mlp\.)(gate|up)_proj(?=\.)"
    load_parts(model, names, "input_linear", {"gate": 0, "up": 1})


def repair_hybrid_loading(model: Any, config: Any) -> None:
    """``GraniteMoeHybridForCausalLM``: the same, and experts one by one."""
    model.quant_config = None  # it would be asked for scales of the KV cache
    repair_loading(model, config)
    load_experts_one_by_one(model, config)
