"""Activations: gated ones on the CPU in one pass over memory, and those of experts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers.activation import GeluAndMul, SiluAndMul
from sglang.srt.layers.moe.moe_runner import MoeRunnerConfig

from ascend_gguf.cpu import row_ops
from ascend_gguf.cpu.experts import (
    ACTIVATIONS,
    PLAIN_ACTIVATIONS,
    swiglu_clamped,
    swiglu_oai,
    swiglu_of_clamped,
)
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


def of_experts(config: MoeRunnerConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """What is computed between two products of experts.

    Raises:
        NotImplementedError: no experts have such an activation.
    """
    alpha, limit, before = config.gemm1_alpha, config.gemm1_clamp_limit, config.swiglu_limit
    known = ACTIVATIONS if config.is_gated else PLAIN_ACTIVATIONS
    if config.is_gated and alpha and limit:
        return swiglu_oai(alpha, limit)
    if alpha is None and config.activation == "silu" and limit and not before:
        return swiglu_clamped(limit)
    if alpha is None and config.activation == "silu" and before and not limit:
        return swiglu_of_clamped(before)
    if alpha is None and not before and config.activation in known:
        return known[config.activation]
    raise NotImplementedError(
        f"experts with activation {config.activation!r} (gated: {config.is_gated}, alpha: "
        f"{alpha}, limit: {before}) are not supported"
    )
