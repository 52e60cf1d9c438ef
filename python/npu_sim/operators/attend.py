"""The arithmetic of attention, shared by the fused operators and ATB's."""

from __future__ import annotations

import torch


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scale: float,
    hidden: torch.Tensor | None = None,
    sink: torch.Tensor | None = None,
):
    """softmax(scale q k^T, hidden positions left out) v, in float32.

    q (S, heads, D); k (L, kv_heads, D); v (L, kv_heads, Dv); hidden (S, L) bool or None; sink
    (heads,): a logit that takes part in the softmax and has no value.  Returns (S, heads, Dv) and
    the log of the softmax's sum, (S, heads).  A row with nothing to see is zero.
    """
    repeat = q.shape[1] // k.shape[1]
    q = q.float().transpose(0, 1)
    k = k.float().transpose(0, 1).repeat_interleave(repeat, 0)
    v = v.float().transpose(0, 1).repeat_interleave(repeat, 0)
    scores = q @ k.transpose(-1, -2) * scale
    if hidden is not None:
        scores.masked_fill_(hidden, -torch.inf)
    if sink is not None:
        scores = torch.cat((scores, sink.float().view(-1, 1, 1).expand(-1, scores.shape[1], 1)), -1)
    total = scores.logsumexp(-1)
    weights = (scores - total.unsqueeze(-1)).exp().nan_to_num(0.0)
    if sink is not None:
        weights = weights[..., :-1]
    return (weights @ v).transpose(0, 1), total.transpose(0, 1)


def causal(queries: int, keys: int) -> torch.Tensor | None:
    """What the last `queries` of `keys` positions may not see: (queries, keys) bool, or None where
    they see everything.
    """
    if queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool).triu(1 + keys - queries)


def gather_pages(cache: torch.Tensor, blocks: torch.Tensor, length: int) -> torch.Tensor:
    """The first `length` rows of a sequence: cache (blocks, block_size, heads, D), blocks the
    sequence's row of the block table.
    """
    block_size = cache.shape[1]
    used = blocks[: -(-length // block_size)].long()
    return cache[used].reshape(-1, *cache.shape[2:])[:length]
