"""RMSNorm on the CPU in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, RMSNorm

from ascend_gguf.cpu.row_ops import rms_norm
from ascend_gguf.srt.device import uses_cpu_kernels


def forward_native(
    original: Callable,
    self: RMSNorm,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    post_residual_addition: torch.Tensor | None = None,
    quant_linear: torch.nn.Module | None = None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Overrides ``RMSNorm.forward_native``, for the norm as models usually have it."""
    weight = self.weight
    if (
        post_residual_addition is not None
        or self.variance_size_override is not None
        or self.cast_x_before_out_mul
        or self.fp32_residual
        or self.override_orig_dtype is not None
        or x.shape[-1] != self.hidden_size
        or self.hidden_size % 16
        or weight.dtype not in (x.dtype, torch.float32)
        or not uses_cpu_kernels(x)
        or (residual is not None and (residual.dtype, residual.shape) != (x.dtype, x.shape))
    ):
        return original(self, x, residual, post_residual_addition, quant_linear)
    return rms_norm(x, weight, self.variance_epsilon, residual)


def gemma_norm(
    original: Callable,
    self: GemmaRMSNorm | Gemma3RMSNorm,
    x: torch.Tensor,
    residual: torch.Tensor | None = None,
    *rest: torch.Tensor | None,
    **named: torch.Tensor | None,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Overrides ``GemmaRMSNorm.forward_native`` and ``Gemma3RMSNorm.forward_native``."""
    weight = self.weight
    if (
        any(tensor is not None for tensor in (*rest, *named.values()))
        or x.shape[-1] % 16
        or weight.shape != x.shape[-1:]
        or weight.dtype not in (x.dtype, torch.float32)
        or not uses_cpu_kernels(x)
        or (residual is not None and (residual.dtype, residual.shape) != (x.dtype, x.shape))
    ):
        return original(self, x, residual, *rest, **named)
    eps = self.eps if isinstance(self, Gemma3RMSNorm) else self.variance_epsilon
    return rms_norm(x, weight, eps, residual, plus_one=True)
