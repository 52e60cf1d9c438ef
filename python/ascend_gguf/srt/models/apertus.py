"""The activation of Apertus, xIELU, whose parameters are metadata in a file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ascend_gguf.srt.models.buffers import use_buffer
from ascend_gguf.srt.overrides import override_methods


def set_activations(model: Any, config: Any) -> None:
    """``ApertusModel``: each layer's xIELU parameters, which the engine expects as tensors."""
    for number in range(model.start_layer, model.end_layer):
        activation = model.layers[number].mlp.act_fn
        for name, values in config.xielu.items():
            use_buffer(activation, name, torch.tensor(values[number], dtype=torch.float32))
        override_methods(activation, _xielu_python=_xielu)


def _xielu(original: Callable, self: Any, x: torch.Tensor) -> torch.Tensor:
    """``XIELU._xielu_python``, which squares its input, in float32."""
    return original(self, x.float()).to(x.dtype)
