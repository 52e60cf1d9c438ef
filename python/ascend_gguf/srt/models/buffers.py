"""Parameters of the engine's models that no tensor of a file fills."""

from __future__ import annotations

import torch
from torch import nn


def use_buffer(module: nn.Module, name: str, values: torch.Tensor | None = None) -> None:
    """Make a parameter a buffer.

    Args:
        values: what it holds then; by default what the parameter does.
    """
    if values is None:
        values = getattr(module, name).data
    delattr(module, name)
    module.register_buffer(name, values, persistent=False)
