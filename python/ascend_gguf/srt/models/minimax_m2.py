"""The norm of queries and keys of MiniMax-M2 where there is no CUDA."""

from __future__ import annotations

from typing import Any

import torch

from ascend_gguf.srt.overrides import let_see


def repair_norm(attention: Any, config: Any) -> None:
    """``MiniMaxM2Attention``: the norm of queries and keys in operators of torch.

    The engine's is of Triton kernels that want CUDA, but on CPUs with AMX.
    """
    norm = getattr(attention, "qk_norm_impl", None)
    if norm is not None and norm._forward_impl == norm._forward_naive:
        let_see(norm, "_forward_naive", rms_sumsq_serial=_sums, rms_apply_serial=_apply)
        norm._forward_impl = norm._forward_naive


def _sums(x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
    """The sum of squares of each row.

    Args:
        x1, x2: ``[tokens, n1]`` and ``[tokens, n2]``.

    Returns:
        float32 ``[2 * tokens]``: those of ``x1``, then those of ``x2``.
    """
    return torch.cat([x.float().square().sum(-1) for x in (x1, x2)])


def _apply(
    x1: torch.Tensor,
    x2: torch.Tensor,
    w1: torch.Tensor,
    w2: torch.Tensor,
    sum_sq: torch.Tensor,
    tp_world: int = 1,
    eps: float = 1e-5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm, given sums of squares over all ranks.

    Args:
        x1, x2, sum_sq: as in :func:`_sums`.
        w1, w2: ``[n1]`` and ``[n2]``.
        tp_world: ranks that share a row.
    """
    first, second = sum_sq[: 2 * len(x1)].chunk(2)
    normed = (
        (x.float() * torch.rsqrt(s[:, None] / x.shape[1] / tp_world + eps) * w.float()).to(x.dtype)
        for x, w, s in ((x1, w1, first), (x2, w2, second))
    )
    return next(normed), next(normed)
