"""Attention with logit soft-cap, sinks or a window both ways, in plain torch: on any device."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

#: Queries at once: the scores of all would take too much memory.
_QUERIES = 512


def attend_requests(
    q: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    requests: Iterable[int],
    lengths: Iterable[int],
    new_lens: Iterable[int],
    scale: float,
    window: int | None = None,
    both_ways: bool = False,
    **options: Any,
) -> torch.Tensor:
    """:func:`attend` of the new tokens of several requests, over a cache.

    Args:
        q, output: ``[tokens, heads, size]``, the new tokens of one request after the other.
        k_cache, v_cache: ``[slots, kv_heads, size]``.
        req_to_token: ``[requests, tokens]``, the slot of each token.
        requests: the row of ``req_to_token`` of each request.
        lengths: how many tokens of it are in the cache, the new ones included.
        new_lens: how many of these are new.
        both_ways: a token sees those after it too, in the window.
        scale, window, options: as of :func:`attend`.

    Returns:
        ``output``; rows behind the last request stay as they are.
    """
    start = 0
    for request, length, new in zip(requests, lengths, new_lens, strict=True):
        for first in range(0, new, _QUERIES):
            count = min(_QUERIES, new - first)
            last = length - new + first + count
            begin = 0 if window is None else max(0, last - count - window)
            after = 0 if not both_ways else length - last if window is None else window
            end = min(last + after, length)
            options["after"] = end - last if both_ways else None
            slots = req_to_token[request, begin:end]
            rows = slice(start + first, start + first + count)
            k, v = k_cache[slots], v_cache[slots]
            output[rows] = attend(q[rows], k, v, scale, window=window, **options)
        start += new
    return output


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    cap: float = 0.0,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    after: int | None = None,
    temperature: int = 0,
) -> torch.Tensor:
    """Attention of a sequence's last tokens, or of some that see those after them too.

    Args:
        q: ``[tokens, heads, size]``, of the last tokens of the sequence.
        k, v: ``[length, kv_heads, size]``, of the whole sequence.
        scale: of the scores.
        cap: logit soft-cap: scores become ``cap * tanh(score / cap)``; zero for none.
        window: how many tokens before its own a token sees; all if None.
        after: how many tokens of the sequence follow those of ``q``, if a token sees them.
        temperature: of a sequence that begins with ``k``: capped scores of a token at a place
            beyond it grow, with the logarithm of the place; zero for none.
        sinks: ``[heads]``, one more score of each head, of a token that has no value.

    Returns:
        ``[tokens, heads, size]`` in the dtype of ``q``, computed in float32.
    """
    # Heads in groups that share keys: repeating these would take much memory.
    grouped = q.float().unflatten(1, (k.shape[1], -1))
    scores = torch.einsum("qghd,kgd->ghqk", grouped, k.float()) * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    places = torch.arange(len(k), device=k.device)
    first = len(k) - len(q) - (after or 0)
    if temperature:
        growth = places[first : first + len(q), None].log2() / math.log2(temperature)
        scores = scores * growth.clamp(min=1)
    distance = places[first : first + len(q), None] - places
    seen = distance >= 0 if after is None else torch.ones_like(distance, dtype=torch.bool)
    if window is not None:
        seen &= distance.abs() <= window
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        column = sinks.float().view(k.shape[1], -1, 1, 1).expand(-1, -1, len(q), 1)
        scores = torch.cat([scores, column], dim=-1)
    shares = scores.softmax(-1)[..., : len(k)]
    return torch.einsum("ghqk,kgd->qghd", shares, v.float()).flatten(1, 2).to(q.dtype)
