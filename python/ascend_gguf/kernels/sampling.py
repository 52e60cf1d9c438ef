"""Drawing tokens on the host without sorting a vocabulary, or a random number for each of it."""

from __future__ import annotations

import torch

#: The most probable tokens among which top-p usually ends.
MOST_PROBABLE = 1024


def sample(probs: torch.Tensor) -> torch.Tensor:
    """One token of each row, by one random number each.

    Args:
        probs: float ``[rows, vocabulary]``, not negative; rows need not sum to 1.

    Returns:
        int32 ``[rows]``; never a token of probability 0.
    """
    sums = probs.cumsum(-1, dtype=torch.float64)
    totals = sums[:, -1:]
    # Rounded up to the total it would be behind the last token.
    below = totals.nextafter(torch.zeros_like(totals))
    drawn = torch.minimum(torch.rand_like(totals) * totals, below)
    return torch.searchsorted(sums, drawn, right=True).view(-1).int()


def most_probable(
    probs: torch.Tensor, top_ps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The tokens that top-p leaves, and some it does not.

    Args:
        probs: float ``[rows, vocabulary]``.
        top_ps: float ``[rows]``.

    Returns:
        Probabilities and int64 ids, ``[rows, MOST_PROBABLE]``, falling; None where some row's
        top-p may reach beyond them.
    """
    if probs.shape[-1] <= MOST_PROBABLE or bool((top_ps >= 1).any()):
        return None
    values, ids = probs.topk(MOST_PROBABLE, dim=-1)
    return (values, ids) if bool((values.sum(-1) > top_ps).all()) else None
