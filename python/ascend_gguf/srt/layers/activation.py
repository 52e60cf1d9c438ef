"""Gated activations on the CPU in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers.activation import SiluAndMul

from ascend_gguf.kernels.row_ops import silu_and_mul
from ascend_gguf.srt.device import uses_cpu_kernels


def forward_native(original: Callable, self: SiluAndMul, x: torch.Tensor) -> torch.Tensor:
    """AROUND ``SiluAndMul.forward_native``."""
    if x.shape[-1] % 32 or not uses_cpu_kernels(x):
        return original(self, x)
    return silu_and_mul(x)
