"""What tests ask a loaded model, in the engine's process: ``probe="probes:NAME"``."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from ascend_gguf.srt import device
from ascend_gguf.srt.model_executor.model_runner_components import weight_updater
from ascend_gguf.srt.model_loader import resident


def bytes_by_form(model_runner: Any) -> dict[str, int]:
    """Bytes of this rank's weights, by the name of the form that holds them."""
    found: dict[str, int] = {}
    for holding in resident.holdings(model_runner.model):
        found[holding.form] = found.get(holding.form, 0) + holding.nbytes
    return found


def embeddings(model_runner: Any) -> dict[str, str]:
    """The form of each embedding and output matrix, by its path in the model."""
    return {
        name: module.gguf_forms["weight"].name if "gguf_forms" in vars(module) else "dense"
        for name, module in model_runner.model.named_modules()
        if isinstance(module, VocabParallelEmbedding | nn.Embedding)
    }


def unchecked_update(model_runner: Any) -> tuple[bool, str]:
    """As :func:`update`, of a file whose numbers are only seen when loading."""
    check, weight_updater.check_numbers = weight_updater.check_numbers, lambda *_: None
    try:
        return update(model_runner)
    finally:
        weight_updater.check_numbers = check


def lost_and_found(model_runner: Any) -> list[Any]:
    """A file that cannot be loaded, while the old one is not what it was; then the old one."""
    old = model_runner.model.gguf_source
    model_runner.model.gguf_source = replace(old, identities=())
    lost = unchecked_update(model_runner), device.lost_weights()
    found = model_runner.weight_updater.update_weights_from_disk(old.path, "auto")
    return [*lost, found, device.lost_weights()]


def update(model_runner: Any) -> tuple[bool, str]:
    """Replace the weights by those of ``$NEW_FILE``."""
    return model_runner.weight_updater.update_weights_from_disk(os.environ["NEW_FILE"], "auto")
