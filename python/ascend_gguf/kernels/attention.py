"""Attention with capped scores or sinks, on the CPU."""

from __future__ import annotations

import torch


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    cap: float = 0.0,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of a sequence's last tokens.

    Args:
        q: ``[tokens, heads, size]``, of the last tokens of the sequence.
        k, v: ``[length, kv_heads, size]``, of the whole sequence.
        scale: of the scores.
        cap: scores become ``cap * tanh(score / cap)``; zero for none.
        window: how many tokens before its own a token sees; all if None.
        sinks: ``[heads]``, one more score of each head, of a token that has no value.

    Returns:
        ``[tokens, heads, size]`` in the dtype of ``q``, computed in float32.
    """
    repeats = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(repeats, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    distance = torch.arange(len(k) - len(q), len(k))[:, None] - torch.arange(len(k))
    seen = distance >= 0 if window is None else (distance >= 0) & (distance <= window)
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.float()[:, None, None].expand(-1, len(q), 1)
        scores = torch.cat([scores, column], dim=-1)
    shares = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("hqk,khd->qhd", shares, values).to(q.dtype)
