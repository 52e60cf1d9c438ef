"""Loading of Granite's mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from ascend_gguf.srt.models.single_experts import load_experts_one_by_one
from ascend_gguf.srt.overrides import override_methods

#: Part of the merged projection, by what a file has of it.
_PARTS = {"shared_mlp.gate_proj.": 0, "shared_mlp.up_proj.": 1}


def repair_loading(model: Any, config: Any) -> None:
    """A repair: gate and up of the shared expert are apart in a file."""
    override_methods(model, load_weights=_load_weights)


def repair_hybrid_loading(model: Any, config: Any) -> None:
    """``GraniteMoeHybridForCausalLM``: the same, and experts one by one."""
    model.quant_config = None  # it would be asked for scales of the KV cache
    repair_loading(model, config)
    load_experts_one_by_one(model, config)


def _load_weights(
    original: Callable, self: Any, weights: Iterable[tuple[str, torch.Tensor]]
) -> Any:
    def others() -> Iterator[tuple[str, torch.Tensor]]:
        parameters = dict(self.named_parameters())
        for name, data in weights:
            part = next((part for part in _PARTS if part in name), None)
            if part is None:
                yield name, data
                continue
            parameter = parameters[name.replace(part, "shared_mlp.input_linear.")]
            parameter.weight_loader(parameter, data, _PARTS[part])

    return original(self, others())
