"""Mamba-2 on the CPU: a state of each request and head, which decays and takes up tokens.

The formula is in :mod:`ascend_gguf.torch_state_space`.  Everything is computed in float32.  Names
and arguments are those of SGLang's Triton kernels; those that it does not pass are not here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ascend_gguf.cpu.causal_conv import requests_of
from ascend_gguf.cpu.recurrent_state import States, state_space
from ascend_gguf.torch_state_space import CHUNK, by_group, within_chunk


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    *,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    cu_seqlens: torch.Tensor,
    initial_states: torch.Tensor | None,
    out: torch.Tensor,
    state_dtype: torch.dtype,
    **others: object,
) -> tuple[None, torch.Tensor, None]:
    """Prompts, :data:`CHUNK` tokens at a time.

    Args:
        x: ``[1, tokens, heads, size]``, the tokens of all requests.
        dt: ``[1, tokens, heads]``, without bias and softplus.
        A, D, dt_bias: ``[heads]``.
        B, C: ``[1, tokens, groups, state]``.
        cu_seqlens: ``[requests + 1]``, where their tokens begin.
        initial_states: ``[requests, heads, size, state]``; None where nothing came before.
        out: as ``x``; the result.
        others: how the kernels divide their work.

    Returns:
        The states after the prompts, as ``initial_states``, between two of nothing.
    """
    groups, state = B.shape[-2:]
    heads, size = x.shape[-2:]
    share = heads // groups
    step = by_group(_steps(dt[0], dt_bias).unsqueeze(-1), groups)
    inputs = by_group(x[0].float(), groups)
    decay = step * A.float().view(groups, share, 1, 1)
    vectors = (part[0].float().transpose(0, 1) for part in (B, C))
    parts = (inputs, step, decay, *vectors)
    skipped = D.float().view(groups, share, 1, 1) * inputs
    states = torch.zeros(len(cu_seqlens) - 1, groups, share, size, state)
    if initial_states is not None:
        states.copy_(initial_states.view(states.shape))
    for request, tokens in enumerate(requests_of(cu_seqlens)):
        for start in range(tokens.start, tokens.stop, CHUNK):
            chunk = slice(start, min(start + CHUNK, tokens.stop))
            pieces = (part[..., chunk, :] for part in parts)
            found, states[request] = _chunk(states[request], *pieces)
            found += skipped[..., chunk, :]
            out[0, chunk] = found.permute(2, 0, 1, 3).flatten(1, 2).to(out.dtype)
    return None, states.view(-1, heads, size, state).to(state_dtype), None


def _chunk(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    decay: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs without ``D`` and the state after some tokens of one request.

    Args:
        state: ``[groups, heads of each, size, state]``.
        x: ``[groups, heads of each, tokens, size]``.
        dt, decay: ``[groups, heads of each, tokens, 1]``; the latter is ``dt A``.
        B, C: ``[groups, tokens, state]``.
    """
    out, gained, seen = within_chunk(x, dt, decay, B, C)
    out += seen * (C.unsqueeze(1) @ state.mT)
    return out, seen[..., -1:, :] * state + gained


def selective_state_update(
    state: torch.Tensor,
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    *,
    dt_bias: torch.Tensor,
    state_batch_indices: torch.Tensor,
    out: torch.Tensor,
    **others: object,
) -> None:
    """One token of each request; its states in ``state`` are replaced.

    Args:
        state: ``[slots, heads, size, state]``.
        x, out: ``[requests, heads, size]``.
        dt: the same, equal for all of a head; so are ``D`` and ``dt_bias`` ``[heads, size]`` and
            ``A`` ``[heads, size, state]``.
        B, C: ``[requests, groups, state]``.
        state_batch_indices: ``[requests]``, their slots.
        others: how the kernel reads it.
    """
    states = States(state, state_batch_indices.contiguous())
    vectors = A[:, 0, 0], B, C, D[:, 0], dt_bias[:, 0]
    state_space(x, dt[..., 0], *vectors, states, out)


def _steps(dt: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.softplus(dt.float() + bias.float())
