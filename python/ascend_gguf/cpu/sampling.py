"""Drawing tokens on the host without sorting a vocabulary, or a random number for each of it."""

from __future__ import annotations

import torch

#: Tokens among which those that can be drawn usually are, and how many to try then.
FEW, MORE = 64, 1024
# Neighbours in the vocabulary whose sum, or maximum, is looked at first.
_BLOCK = 128


def finite_rows(logits: torch.Tensor) -> torch.Tensor:
    """bool ``[rows]``: whether all of ``logits [rows, vocabulary]`` are finite, on any device."""
    # A sum is NaN or infinite if one of its terms is, on every device; a maximum may skip NaN.
    return torch.isfinite(logits.sum(-1, dtype=torch.float32))


def sample(probs: torch.Tensor) -> torch.Tensor:
    """One token of each row, by one random number each.

    Args:
        probs: float ``[rows, vocabulary]``, not negative; rows need not sum to 1.

    Returns:
        int32 ``[rows]``; never a token of probability 0, and -1 for a row without a token: one
        whose numbers are NaN, or all 0.
    """
    blocks, rest = _in_blocks(probs)
    parts = blocks.sum(-1, dtype=torch.float64)
    if rest.shape[-1]:
        parts = torch.cat([parts, rest.sum(-1, keepdim=True, dtype=torch.float64)], dim=-1)
    sums = parts.cumsum(-1)
    drawn = _below(torch.rand_like(sums[:, -1:]) * sums[:, -1:], sums)
    # Behind all blocks is where NaN, and a row of zeros, are found.
    block = torch.searchsorted(sums, drawn, right=True).clamp_(max=sums.shape[-1] - 1)
    drawn = drawn - (sums - parts).gather(1, block)
    ids = block * _BLOCK + torch.arange(_BLOCK)
    last = probs.shape[-1] - 1
    found = probs.gather(1, ids.clamp(max=last)).masked_fill(ids > last, 0.0)
    sums = found.cumsum(-1, dtype=torch.float64)
    place = torch.searchsorted(sums, _below(drawn, sums), right=True).clamp_(max=_BLOCK - 1)
    chosen = ids.gather(1, place).masked_fill_(~(sums[:, -1:] > 0), -1)
    return chosen.view(-1).int()


def sample_seeded(
    probs: torch.Tensor, seeds: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """One token of each row, which depends on that row, its seed and its position alone.

    Args:
        probs: as of :func:`sample`.
        seeds, positions: whole numbers ``[rows]``.

    Returns:
        As :func:`sample`, int64 on the host.
    """
    sums = probs.cpu().cumsum(-1, dtype=torch.float64)
    drawn = uniforms(seeds.cpu(), positions.cpu()).view(-1, 1) * sums[:, -1:]
    tokens = torch.searchsorted(sums, _below(drawn, sums), right=True).view(-1)
    return tokens.masked_fill(~(sums[:, -1] > 0), -1)


def filtered(
    probs: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor, min_ps: torch.Tensor
) -> torch.Tensor:
    """``probs [rows, vocabulary]`` with zeros for what top-k, top-p and min-p leave out.

    They stay in the order of the vocabulary: were they drawn in the order of their size, the last
    bit of a probability could change which token a random number means.
    """
    values, ids = probs.sort(dim=-1, descending=True)
    before = values.cumsum(-1) - values
    dropped = torch.arange(probs.shape[-1]) >= top_ks.view(-1, 1)
    dropped |= before > top_ps.view(-1, 1)
    dropped |= values < values[:, :1] * min_ps.view(-1, 1)
    return torch.zeros_like(probs).scatter_(1, ids, values.masked_fill(dropped, 0.0))


def uniforms(seeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """A number in ``[0, 1)`` for each pair of whole numbers (SplitMix64), float64."""
    state = _mixed(seeds.long()) + positions.long()
    bits = _mixed(state) >> 11 & (1 << 53) - 1
    return bits.double() / (1 << 53)


def _mixed(state: torch.Tensor) -> torch.Tensor:
    """SplitMix64's next output, int64 that wraps around."""
    state = state - 0x61C8864680B583EB
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15)):
        state = (state ^ state >> shift & (1 << 64 - shift) - 1) * factor
    return state ^ state >> 31 & (1 << 33) - 1


def most_probable(
    probs: torch.Tensor, top_ks: torch.Tensor, top_ps: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The tokens that top-k and top-p leave, and some they do not.

    Args:
        probs: float ``[rows, vocabulary]``.
        top_ks: whole numbers ``[rows]``.
        top_ps: float ``[rows]``.

    Returns:
        Probabilities and int64 ids, ``[rows, few]``, falling; None where those of some row may not
        be among the most probable :data:`MORE`.
    """
    for count in (FEW, MORE):
        if probs.shape[-1] <= count or bool(((top_ps >= 1) & (top_ks > count)).any()):
            continue
        values, ids = _largest(probs, count)
        if bool(((values.sum(-1) > top_ps) | (top_ks <= count)).all()):
            return values, ids
    return None


def _in_blocks(probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``[rows, blocks, _BLOCK]``, and what is left of each row."""
    whole = probs.shape[-1] // _BLOCK * _BLOCK
    return probs[:, :whole].unflatten(-1, (-1, _BLOCK)), probs[:, whole:]


def _below(drawn: torch.Tensor, sums: torch.Tensor) -> torch.Tensor:
    """Values less than the last sum: rounded they might be that, which is behind all tokens."""
    totals = sums[:, -1:]
    return torch.minimum(drawn, totals.nextafter(torch.zeros_like(totals)))


def _largest(probs: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As ``probs.topk(count)``: of the blocks with the greatest numbers, and of the rest."""
    blocks, rest = _in_blocks(probs)
    if 8 * count > blocks.shape[1]:  # most blocks would be looked at
        return probs.topk(count)
    best = blocks.amax(-1).topk(count).indices
    ids = (best.unsqueeze(-1) * _BLOCK + torch.arange(_BLOCK)).flatten(1)
    behind = torch.arange(probs.shape[-1] - rest.shape[-1], probs.shape[-1])
    ids = torch.cat([ids, behind.expand(len(ids), -1)], dim=-1)
    values, places = probs.gather(1, ids).topk(count)
    return values, ids.gather(1, places)
