"""Gated delta net on the CPU: a recurrent state, and what is around it.

The rule is in :mod:`ascend_gguf.torch_delta_rule`.  Names and arguments are those of SGLang's CPU
kernels, which come with ``sgl_kernel`` for AMX alone.
"""

from __future__ import annotations

import torch

from ascend_gguf.cpu.recurrent_state import States, delta_rule
from ascend_gguf.cpu.row_ops import rms_norm
from ascend_gguf.torch_delta_rule import CHUNK, CHUNK_BY_CHANNEL, Tokens, scan
from ascend_gguf.torch_state_space import Chunks


def chunk_gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    *,
    initial_state: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    head_first: bool = False,
    use_qk_l2norm_in_kernel: bool = True,
) -> tuple[torch.Tensor, None, None]:
    """The delta rule for prompts.

    Args:
        q, k: ``[1, tokens, key_heads, key_size]``, the tokens of all requests.
        v: ``[1, tokens, value_heads, value_size]``; as many value heads side by side share a key
            head.
        g, beta: ``[1, tokens, value_heads]``, of :func:`.gates`; ``g`` may have a fourth dimension,
            the channels of keys.
        initial_state: ``[slots, value_heads, value_size, key_size]``; changed in place.
        initial_state_indices: ``[requests]``, their slots.
        cu_seqlens: ``[requests + 1]``, where their tokens begin.

    Returns:
        ``[1, tokens, value_heads, value_size]`` of the dtype of ``v``, and nothing of the states
        in between.
    """
    assert use_qk_l2norm_in_kernel and not head_first
    slots, share = initial_state_indices.long(), v.shape[2] // k.shape[2]
    q, k = (x[0].float().repeat_interleave(share, 1) for x in (q, k))
    g = g.unsqueeze(-1) if g.dim() == 3 else g
    tokens = Tokens(q, k, *(x[0].float() for x in (v, g, beta)))
    size = CHUNK if g.shape[-1] == 1 else CHUNK_BY_CHANNEL
    chunks = Chunks(cu_seqlens.diff().tolist(), size, "cpu")
    out, states, _ = scan(tokens, initial_state[slots].float(), chunks)
    initial_state[slots] = states.to(initial_state.dtype)
    return out.to(v.dtype).unsqueeze(0), None, None


def fused_sigmoid_gating_delta_rule_update(
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    initial_state_source: torch.Tensor,
    initial_state_indices: torch.Tensor,
    cu_seqlens: torch.Tensor,
    use_qk_l2norm_in_kernel: bool = True,
    softplus_beta: float = 1.0,
    softplus_threshold: float = 20.0,
) -> torch.Tensor:
    """The delta rule for one token of each request, with :func:`.gates` of ``a`` and ``b``.

    As :func:`chunk_gated_delta_rule`; the states are ``initial_state_source``.  What says how each
    channel decays has the channels of a head side by side, in one dimension.
    """
    assert use_qk_l2norm_in_kernel and softplus_beta == 1
    states = States(initial_state_source, initial_state_indices.contiguous())
    a, b = a.contiguous(), b.contiguous()
    return delta_rule(q[0], k[0], v[0], a, b, A_log, dt_bias, states).unsqueeze(0)


def offset_rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """The norm of each head ``[tokens, heads, size]``, times one more than ``weight``."""
    normed = rms_norm(x, weight, eps, plus_one=True)
    assert isinstance(normed, torch.Tensor)
    return normed.flatten(1)


def norm_queries_and_keys(
    q: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_size: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`offset_rms_norm` of the heads of ``q`` and ``k`` ``[tokens, heads * head_size]``."""
    q, k = (x.unflatten(-1, (-1, head_size)) for x in (q, k))
    return offset_rms_norm(q, q_weight, eps), offset_rms_norm(k, k_weight, eps)


def norm_gated_queries_and_keys(
    q_and_gate: torch.Tensor,
    k: torch.Tensor,
    q_weight: torch.Tensor,
    k_weight: torch.Tensor,
    eps: float,
    head_size: int,
    heads: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As :func:`norm_queries_and_keys`; beside each query of a head is its gate, returned last."""
    q, gate = q_and_gate.unflatten(-1, (heads, 2, head_size)).unbind(2)
    k = k.unflatten(-1, (-1, head_size))
    normed = offset_rms_norm(q, q_weight, eps), offset_rms_norm(k, k_weight, eps)
    return *normed, gate.flatten(1)


def split_projections(
    qkvz: torch.Tensor,
    ba: torch.Tensor,
    key_heads: int,
    value_heads: int,
    key_size: int,
    value_size: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """What a delta net computes of its input, apart.

    Args:
        qkvz: ``[tokens, ...]``: all queries, all keys, all values, all gates.
        ba: ``[tokens, 2 * value_heads]``.

    Returns:
        Queries, keys and values; gates ``[tokens, value_heads, value_size]``; ``b``; ``a``.
    """
    values = value_heads * value_size
    mixed, z = qkvz.split([2 * key_heads * key_size + values, values], dim=-1)
    b, a = ba.split([value_heads, value_heads], dim=-1)
    z = z.unflatten(-1, (value_heads, value_size))
    return mixed, z, b.contiguous(), a.contiguous()
