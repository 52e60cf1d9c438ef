"""Mamba-2 on the CPU: a state of each request and head, which decays and takes up tokens.

The formula is in :mod:`ascend_gguf.torch_state_space`.  Names and arguments are those of SGLang's
Triton kernels; those that it does not pass are not here.
"""

from __future__ import annotations

import torch

from ascend_gguf.cpu.recurrent_state import States, state_space
from ascend_gguf.torch_state_space import CHUNK, Chunks, Heads, scan


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
    lengths, (heads, size) = cu_seqlens.diff().tolist(), x.shape[-2:]
    states = torch.zeros(len(lengths), heads, size, B.shape[-1])
    if initial_states is not None:
        states.copy_(initial_states)
    chunks = Chunks(lengths, CHUNK, "cpu")
    out[0], states, _ = scan(x[0], dt[0], B[0], C[0], Heads(A, D, dt_bias), states, chunks)
    return None, states.to(state_dtype), None


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
