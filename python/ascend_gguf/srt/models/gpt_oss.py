"""Loading gpt-oss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from ascend_gguf.srt.device import uses_ascend_methods
from ascend_gguf.srt.models.single_experts import load_single_experts


def load_weights(
    original: Callable,
    self: torch.nn.Module,
    weights: Iterable[tuple[str, torch.Tensor]],
    **kwargs: Any,
) -> None:
    """AROUND ``GptOssForCausalLM.load_weights``: experts one by one, gate and up apart."""
    if uses_ascend_methods():
        weights = load_single_experts(self, weights)
    return original(self, weights, **kwargs)
