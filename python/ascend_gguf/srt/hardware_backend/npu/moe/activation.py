"""Activations between an expert's projections on an Ascend NPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.hardware_backend.npu.moe.activation import BaseActivation, NPUSwigluOAI


class NPUHalvesSwigluOAI(NPUSwigluOAI):
    """gpt-oss's activation of gate and up one after the other, as files hold them.

    The engine's kernel wants interleaved columns of gate and up.
    """

    def _apply_activation(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """``[rows, 2 * ffn]`` to ``[rows, ffn]``."""
        in_turn = hidden_states.unflatten(-1, (2, -1)).transpose(-2, -1).flatten(-2)
        return super()._apply_activation(in_turn)


class NPUTorchActivation(BaseActivation):
    """An activation by torch's operators: without a gate, or of a clamped one.

    The engine's runner takes what is not SwiGLU for GeGLU, and leaves clamps before SwiGLU out.
    """

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._function = function

    def _apply_activation(self, hidden_states: torch.Tensor) -> tuple[torch.Tensor, None]:
        """``[rows, ffn]``, of a gate and up ``[rows, 2 * ffn]``, to ``[rows, ffn]``."""
        return self._function(hidden_states), None
