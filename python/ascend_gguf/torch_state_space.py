"""Mamba-2 in plain torch, on any device: a state of each request and head, in float32.

The state ``S`` of a head is a matrix.  A token with input ``x``, step ``dt`` and vectors ``B`` and
``C``, which the heads of a group share, changes it and reads it::

    S = exp(dt A) S + dt x B^T;    output = S C + D x

Tokens of a chunk are computed together, by products of matrices.

Source: Dao and Gu, Transformers are SSMs, arXiv 2405.21060.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

#: Tokens of a prompt that are computed together.
CHUNK = 64

#: Chunks together: what tokens do to each other would take too much memory for all.
CHUNKS_AT_ONCE = 16


@dataclass(frozen=True)
class Heads:
    """What the heads of a layer have beside their inputs, ``[heads]`` each."""

    A: torch.Tensor
    D: torch.Tensor
    dt_bias: torch.Tensor


class Chunks:
    """The tokens of some prompts in chunks: once for all layers.

    Args:
        lengths: tokens of each request.
        size: of a chunk; the last one of a request has fewer.

    Attributes:
        requests: of each chunk, its request.
        starts: of each chunk, its first token among those of all requests.
        rows: ``[chunks, size]``, the tokens; the last one of a request again where there is none.
        is_token: the same, 1.0 where there is one, else 0.0.
        places: ``[tokens]``, where each token is in ``rows``.
    """

    def __init__(self, lengths: Sequence[int], size: int, device: torch.device | str) -> None:
        ends = np.cumsum(lengths, dtype=np.int64)
        self.requests: list[int] = []
        starts: list[int] = []
        for request, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            of_request = range(int(end) - length, int(end), size)
            starts += of_request
            self.requests += [request] * len(of_request)
        self.starts = starts
        rows = np.asarray(starts, np.int64).reshape(-1, 1) + np.arange(size)
        last = ends[self.requests][:, None] - 1
        is_token = rows <= last
        self.rows = torch.from_numpy(np.minimum(rows, last)).to(device)
        self.is_token = torch.from_numpy(is_token.astype(np.float32)).to(device)
        self.places = torch.from_numpy(is_token.reshape(-1).nonzero()[0]).to(device)


def scan(
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    heads: Heads,
    states: torch.Tensor,
    chunks: Chunks,
    wanted: Collection[int] = (),
) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
    """Prompts, a chunk at a time.

    Args:
        x: ``[tokens, heads, size]``, the tokens of all requests.
        dt: ``[tokens, heads]``, without bias and softplus.
        B, C: ``[tokens, groups, state]``.
        states: ``[requests, heads, size, state]``, float32.
        wanted: numbers of chunks.

    Returns:
        Outputs, float32, as ``x``; the states after the prompts; and those before the chunks that
        are wanted, ``[heads, size, state]``.
    """
    dt = F.softplus(dt.float() + heads.dt_bias.float())
    after, before, found = list(states.unbind(0)), {}, []
    for first in range(0, len(chunks.starts), CHUNKS_AT_ONCE):
        some = slice(first, first + CHUNKS_AT_ONCE)
        rows, is_token = chunks.rows[some], chunks.is_token[some]
        taken = [part[rows].float() for part in (x, B, C)]
        steps = dt[rows] * is_token.unsqueeze(-1)
        out, gained, seen, vectors = _of_chunks(taken, steps, heads.A.float())
        kept, earlier = seen[..., -1:, :].flatten(1, 2), []
        for number, request in enumerate(chunks.requests[some]):
            state = after[request]
            earlier.append(state)
            if first + number in wanted:
                before[first + number] = state
            after[request] = torch.addcmul(gained[number].flatten(0, 1), kept[number], state)
        came = torch.stack(earlier).view(gained.shape)
        out = out + seen * (vectors.unsqueeze(-3) @ came.mT)
        found.append(out.movedim(-2, 1).flatten(2, 3).flatten(0, 1))
    output = torch.cat(found).index_select(0, chunks.places)
    output = torch.addcmul(output, heads.D.float()[:, None], x.float())
    return output, torch.stack(after), before


def _of_chunks(
    taken: list[torch.Tensor], steps: torch.Tensor, A: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """:func:`_within_chunk` of ``[chunks, tokens, ...]``, and the ``C`` that it took."""
    x, B, C = taken
    groups = B.shape[-2]
    B, C = (part.transpose(1, 2) for part in (B, C))
    dt, decay = (_by_group(part.unsqueeze(-1), groups) for part in (steps, steps * A))
    return *_within_chunk(_by_group(x, groups), dt, decay, B, C), C


def _within_chunk(
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


def _by_group(part: torch.Tensor, groups: int) -> torch.Tensor:
    """``[..., tokens, heads, size]`` as ``[..., groups, heads of each, tokens, size]``."""
    return part.unflatten(-2, (groups, -1)).movedim(-4, -2)


def step(
    x: torch.Tensor,
    dt: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    heads: Heads,
    states: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """As :func:`scan`, of one token a request; nothing depends on what is computed.

    Args:
        states: ``[slots, heads, size, state]``; those of these requests are replaced.
        slots: ``[requests]``.
    """
    x, share = x.float(), x.shape[1] // B.shape[1]
    dt = F.softplus(dt.float() + heads.dt_bias.float())
    B, C = (part.float()[:, :, None].expand(-1, -1, share, -1).flatten(1, 2) for part in (B, C))
    kept = (dt * heads.A.float()).exp()[..., None, None]
    gained = (dt[..., None] * x)[..., None] * B[:, :, None]
    state = torch.addcmul(gained, kept, states[slots].float())
    states[slots] = state.to(states.dtype)
    return torch.addcmul((state @ C[..., None])[..., 0], heads.D.float()[:, None], x)
