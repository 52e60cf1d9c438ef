"""Kimi Delta Attention by torch's operators: a state of each request and head, in float32.

The formula is in :mod:`ascend_gguf.cpu.delta_net`, with a decay for each channel.  sgl-kernel-npu
has operators for prompts, whose rules are not documented.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch

from ascend_gguf.npu.state_space import CHUNKS_AT_ONCE, Chunks
from ascend_gguf.torch_delta_rule import between, of_length_one


@dataclass(frozen=True)
class Tokens:
    """What the delta rule takes of some tokens, float32.

    Args:
        q, k: ``[tokens, heads, size]``, as they were convolved.
        v: ``[tokens, heads, value_size]``.
        g, beta: ``[tokens, heads, size]`` and ``[tokens, heads]``, of :func:`.gates`.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor

    def queries_and_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the rule: scaled."""
        return of_length_one(self.q) * self.q.shape[-1] ** -0.5, of_length_one(self.k)


def scan(
    tokens: Tokens, states: torch.Tensor, chunks: Chunks, wanted: Collection[int] = ()
) -> tuple[torch.Tensor, torch.Tensor, dict[int, torch.Tensor]]:
    """Prompts, a chunk at a time.

    Args:
        states: ``[requests, heads, value_size, size]``, float32.
        chunks: of the tokens.
        wanted: numbers of chunks.

    Returns:
        Outputs ``[tokens, heads, value_size]``; the states after the prompts; and those before the
        chunks that are wanted, ``[heads, value_size, size]``.
    """
    after, before, found = list(states.unbind(0)), {}, []
    parts = *tokens.queries_and_keys(), tokens.v, tokens.g, tokens.beta.unsqueeze(-1)
    for first in range(0, len(chunks.starts), CHUNKS_AT_ONCE):
        some = slice(first, first + CHUNKS_AT_ONCE)
        rows = chunks.rows[some]
        q, k, v, g, beta = (part[rows].transpose(1, 2) for part in parts)
        is_token = chunks.is_token[some, None, :, None]
        g, beta = g * is_token, beta * is_token
        since = g.cumsum(-2)
        seen = since.exp()
        # What each token adds: less what those before it have added by then.
        solved = _inverse(beta * between(since, k, k))
        alone, of_state = solved @ (beta * v), solved @ (beta * seen * k)
        left, kept = (since[..., -1:, :] - since).exp() * k, seen[..., -1:, :]
        came, added = [], []
        for number, request in enumerate(chunks.requests[some]):
            state = after[request]
            if first + number in wanted:
                before[first + number] = state
            came.append(state)
            added.append(alone[number] - of_state[number] @ state.mT)
            after[request] = torch.addcmul(added[-1].mT @ left[number], kept[number], state)
        out = (seen * q) @ torch.stack(came).mT + between(since, q, k) @ torch.stack(added)
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, chunks.places), torch.stack(after), before


def _inverse(system: torch.Tensor) -> torch.Tensor:
    """Of ``[..., tokens, tokens]``, of which only what is below the diagonal counts: it has ones.

    Row by row: powers of the matrix would lose digits.
    """
    size = system.shape[-1]
    found = torch.eye(size, device=system.device).expand(system.shape).clone()
    for row in range(1, size):
        found[..., row, :row] = -(system[..., row : row + 1, :row] @ found[..., :row, :row])[
            ..., 0, :
        ]
    return found


def step(tokens: Tokens, states: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """As :func:`scan`, of one token a request; nothing depends on what is computed.

    Args:
        states: ``[slots, heads, value_size, size]``; those of these requests are replaced.
        slots: ``[requests]``.
    """
    q, k = tokens.queries_and_keys()
    state = states[slots].float() * tokens.g.exp().unsqueeze(-2)
    missing = tokens.v - (state @ k.unsqueeze(-1)).squeeze(-1)
    taken = tokens.beta.unsqueeze(-1) * missing
    state = torch.addcmul(state, taken.unsqueeze(-1), k.unsqueeze(-2))
    states[slots] = state.to(states.dtype)
    return (state @ q.unsqueeze(-1)).squeeze(-1)
