"""The norm of queries and keys of MiniMax-M2 where there is no CUDA."""

from __future__ import annotations

from collections.abc import Callable

import torch


def rms_sumsq_serial(original: Callable, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    """AROUND the engine's CUDA kernel: the sum of squares of each row.

    Args:
        x1, x2: ``[tokens, n1]`` and ``[tokens, n2]``.

    Returns:
        float32 ``[2 * tokens]``: those of ``x1``, then those of ``x2``.
    """
    if x1.is_cuda:
        return original(x1, x2)
    return torch.cat([x.float().square().sum(-1) for x in (x1, x2)])


def rms_apply_serial(
    original: Callable,
    x1: torch.Tensor,
    x2: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    sum_sq: torch.Tensor,
    tp_world: int = 1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """AROUND the engine's CUDA kernel: the norm, given sums of squares over all ranks.

    Args:
        x1, x2, sum_sq: as in :func:`rms_sumsq_serial`.
        w1, w2: ``[n1]`` and ``[n2]``.
        tp_world: ranks that share a row.
    """
    if x1.is_cuda:
        return original(x1, x2, w1, w2, sum_sq, tp_world, eps)
    first, second = sum_sq[: 2 * len(x1)].chunk(2)
    normed = (
        (x.float() * torch.rsqrt(s[:, None] / x.shape[1] / tp_world + eps) * w.float()).to(x.dtype)
        for x, w, s in ((x1, w1, first), (x2, w2, second))
    )
    return next(normed), next(normed)
