"""The output matrix, of classes whose loaders leave out some forms of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ascend_gguf.srt.models.direct_loading import load_directly
from ascend_gguf.srt.overrides import override_methods


def add_output_bias(model: Any, config: Any) -> None:
    """Add the bias of ``lm_head`` to logits; the engine's logits processor is told of none."""
    override_methods(model.logits_processor, _compute_lm_head=_compute_lm_head)


def _compute_lm_head(
    original: Callable,
    self: Any,
    hidden_states: torch.Tensor,
    lm_head: Any,
    *args: Any,
    **kwargs: Any,
) -> torch.Tensor:
    logits = original(self, hidden_states, lm_head, *args, **kwargs)
    logits += lm_head.bias
    return logits


def load_output_matrix(model: Any, config: Any) -> None:
    """Load ``lm_head``, in blocks or dense, past the model's own ``load_weights``."""
    load_directly(model, r"lm_head\.")
