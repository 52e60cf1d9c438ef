"""Gated activations on the CPU in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul

from ascend_gguf.cpu import row_ops
from ascend_gguf.srt.device import uses_cpu_kernels


def silu_and_mul(original: Callable, self: SiluAndMul, x: torch.Tensor) -> torch.Tensor:
    """Overrides ``SiluAndMul.forward_native``."""
    if x.shape[-1] % 32 or not uses_cpu_kernels(x):
        return original(self, x)
    return row_ops.silu_and_mul(x)


def gelu_and_mul(original: Callable, self: GeluAndMul, x: torch.Tensor) -> torch.Tensor:
    """Overrides ``GeluAndMul.forward_native``, for the approximation by a hyperbolic tangent."""
    if x.shape[-1] % 32 or self.approximate != "tanh" or not uses_cpu_kernels(x):
        return original(self, x)
    return row_ops.gelu_tanh_and_mul(x)
