"""From a router's logits to experts and their weights, on the CPU."""

from __future__ import annotations

import torch


def softmax_of_best(
    logits: torch.Tensor, k: int, *, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts with the greatest logits, greatest first, and their softmax.

    The engine takes the softmax of all, and divides the best by their sum.

    Args:
        logits: ``[tokens, experts]``: float32, bfloat16 or float16.
        renormalize: weights are divided by their sum; else the softmax is that of all experts.

    Returns:
        Weights ``[tokens, k]`` float32, and ids ``[tokens, k]`` int32.  Where a logit is NaN
        or infinite, weights are NaN; one of minus infinity has none.
    """
    logits = logits.float()
    best, ids = logits.topk(k)
    weights = best.softmax(-1) if renormalize else logits.softmax(-1).gather(1, ids)
    return weights, ids.int()
