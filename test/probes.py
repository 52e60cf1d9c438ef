"""What tests ask a loaded model, in the engine's process: ``probe="probes:NAME"``."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

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
