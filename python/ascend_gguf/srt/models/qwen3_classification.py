"""The head of a reranker made of Qwen3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


class _Float32Linear(nn.Linear):
    """A linear layer computed in float32, whatever the dtype of the model."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight)


def use_float32_head(model: nn.Module, config: Any) -> None:
    """``Qwen3ForSequenceClassification``: no bias, and logits in float32.

    Scores of two documents may differ by less than bfloat16 tells apart.
    """
    sizes = config.hidden_size, config.num_labels
    model.score = _Float32Linear(*sizes, bias=False, dtype=torch.float32)
