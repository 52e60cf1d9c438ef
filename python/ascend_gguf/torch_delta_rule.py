"""The gated delta rule in plain torch, on any device: a state of each request and head, in float32.

The state ``S`` of a head is a matrix that maps keys to values.  A token with key ``k``, value
``v``, decay ``exp(g)`` and rate ``beta`` changes it, and its query ``q`` reads it::

    S = S exp(g);    S = S + beta (v - S k) k^T;    output = S q

``g`` is a number, or with Kimi Delta Attention one for each channel of a key, a column of ``S``.
Within a chunk of a prompt every token's change depends on those before it: a triangular system of
equations, solved at once.

Sources: Yang et al., Gated Delta Networks, arXiv 2412.06464; Kimi Team, Kimi Linear, arXiv
2510.26692.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ascend_gguf.torch_state_space import CHUNKS_AT_ONCE, Chunks

#: Added to the square of the length of queries and keys.
EPS = 1e-6

#: Tokens of a prompt that are solved together, and where each channel of a key decays by itself.
CHUNK, CHUNK_BY_CHANNEL = 64, 16


def gates(
    A_log: torch.Tensor, a: torch.Tensor, b: torch.Tensor, dt_bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """``g`` and ``beta`` ``[1, tokens, heads]`` float32, of ``a`` and ``b`` ``[tokens, heads]``.

    With ``a`` ``[tokens, heads, size]`` and ``dt_bias`` ``[heads, size]``, ``g`` has a size too.
    """
    rate = A_log.float().exp().view(-1, *[1] * (a.dim() - 2))
    g = -rate * F.softplus(a.float() + dt_bias.float())
    return g.unsqueeze(0), b.float().sigmoid().unsqueeze(0)


@dataclass(frozen=True)
class Tokens:
    """What the delta rule takes of some tokens, float32.

    Args:
        q, k: ``[tokens, heads, size]``, as they were convolved.
        v: ``[tokens, heads, value_size]``.
        g, beta: ``[tokens, heads, size]`` and ``[tokens, heads]``, of :func:`gates`; one channel of
            ``g`` stands for all.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    g: torch.Tensor
    beta: torch.Tensor

    def queries_and_keys(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Those of the rule: scaled."""
        return _of_length_one(self.q) * self.q.shape[-1] ** -0.5, _of_length_one(self.k)


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
        solved = _inverse(beta * _between(since, k, k))
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
        out = (seen * q) @ torch.stack(came).mT + _between(since, q, k) @ torch.stack(added)
        found.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(found).index_select(0, chunks.places), torch.stack(after), before


def _of_length_one(x: torch.Tensor) -> torch.Tensor:
    """Vectors ``[..., size]`` of float32, scaled."""
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()


def _between(since: torch.Tensor, x: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """``[..., tokens, tokens]``: ``x`` of each times ``k`` of those up to it, less the decay.

    The decay from one to another is computed as such: apart it would overflow.

    Args:
        since: ``[..., tokens, channels]``, the sum of ``g`` up to each; one channel stands for all.
        x, k: ``[..., tokens, size]``.
    """
    if since.shape[-1] == 1:
        return (x @ k.mT) * (since - since.mT).tril().exp().tril()
    decay = (since.unsqueeze(-2) - since.unsqueeze(-3)).clamp(max=0).exp()
    products = (decay * k.unsqueeze(-3)) @ x.unsqueeze(-1)
    return products.squeeze(-1).tril()


def _inverse(system: torch.Tensor) -> torch.Tensor:
    """Of ``[..., tokens, tokens]``, of which only what is below the diagonal counts: it has ones.

    An NPU does it row by row: powers of the matrix would lose digits.
    """
    size = system.shape[-1]
    found = torch.eye(size, device=system.device).expand(system.shape)
    if system.device.type == "cpu":
        return torch.linalg.solve_triangular(system, found, upper=False, unitriangular=True)
    found = found.clone()
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
