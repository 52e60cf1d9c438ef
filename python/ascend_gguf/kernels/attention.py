"""Attention whose scores are capped, on the CPU."""

from __future__ import annotations

import torch


def capped_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    cap: float,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention of a sequence's last tokens, with scores ``cap * tanh(score / cap)``.

    Args:
        q: ``[tokens, heads, size]``, of the last tokens of the sequence.
        k, v: ``[length, kv_heads, size]``, of the whole sequence.
        scale: of the scores.
        cap: the largest score.
        window: how many tokens before its own a token sees; all if None.

    Returns:
        ``[tokens, heads, size]`` in the dtype of ``q``, computed in float32.
    """
    repeats = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    scores = cap * torch.tanh(scores / cap)
    distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    seen = distance >= 0 if window is None else (distance >= 0) & (distance <= window)
    scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values).to(q.dtype)
