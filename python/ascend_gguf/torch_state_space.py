"""Chunks of Mamba-2's states in plain torch: on any device.

The state ``S`` of a head is a matrix.  A token with input ``x``, step ``dt`` and vectors ``B`` and
``C``, which the heads of a group share, changes it and reads it::

    S = exp(dt A) S + dt x B^T;    output = S C + D x

Tokens of a chunk are computed together, by products of matrices.

Source: Dao and Gu, Transformers are SSMs, arXiv 2405.21060.
"""

from __future__ import annotations

import torch

#: Tokens of a prompt that are computed together.
CHUNK = 64


def within_chunk(
    x: torch.Tensor, dt: torch.Tensor, decay: torch.Tensor, B: torch.Tensor, C: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the tokens of a chunk do to each other, without ``D`` and without what came before.

    Args:
        x: ``[..., groups, heads of each, tokens, size]``.
        dt, decay: ``[..., groups, heads of each, tokens, 1]``; the latter is ``dt A``.
        B, C: ``[..., groups, tokens, state]``.

    Returns:
        The outputs, as ``x``; what the state gains, ``[..., groups, heads of each, size, state]``;
        and how much of an earlier state each token sees, as ``dt``: the last one's is what the
        state keeps.
    """
    since = decay.cumsum(-2)
    between = (since - since.mT).tril().exp().tril()
    scaled = dt * x
    out = ((C @ B.mT).unsqueeze(-3) * between) @ scaled
    gained = ((since[..., -1:, :] - since).exp() * scaled).mT @ B.unsqueeze(-3)
    return out, gained, since.exp()


def by_group(part: torch.Tensor, groups: int) -> torch.Tensor:
    """``[..., tokens, heads, size]`` as ``[..., groups, heads of each, tokens, size]``."""
    return part.unflatten(-2, (groups, -1)).movedim(-4, -2)
