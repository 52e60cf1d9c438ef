"""Short causal convolutions on the CPU, channel by channel, with the last inputs as a state.

Names and arguments are those of SGLang's CPU kernels, which come with ``sgl_kernel`` for AMX alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activation: str | None,
    conv_states: torch.Tensor,
    has_initial_state: torch.Tensor,
    cache_indices: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Sequence[int] | None = None,
) -> torch.Tensor:
    """The convolution of prompts, channel by channel.

    Args:
        x: ``[channels, tokens]``, the tokens of all requests.
        weight: ``[channels, width]``.
        activation: ``silu``, ``swish`` or None.
        conv_states: ``[slots, channels, width - 1]``, the inputs before; those of these requests
            are replaced.
        has_initial_state: ``[requests]``; without one, nothing came before.
        cache_indices: ``[requests]``, their slots.
        query_start_loc: ``[requests + 1]``, where their tokens begin.

    Returns:
        ``[channels, tokens]`` of the dtype of ``x``.
    """
    slots = cache_indices.long()
    before = conv_states[slots].to(x.dtype)
    before *= has_initial_state.view(-1, 1, 1)
    out = torch.empty_like(x)
    for request, tokens in enumerate(requests_of(query_start_loc)):
        padded = torch.cat((before[request], x[:, tokens]), dim=-1)
        out[:, tokens] = _convolve(padded[None], weight, bias, activation)[0]
        before[request] = padded[:, padded.shape[1] - before.shape[2] :]
    conv_states[slots] = before.to(conv_states.dtype)
    return out


def causal_conv1d_update(
    x: torch.Tensor,
    conv_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    conv_state_indices: torch.Tensor,
) -> torch.Tensor:
    """As :func:`causal_conv1d_fn`, of one token a request: ``x`` is ``[requests, channels]``."""
    slots = conv_state_indices.long()
    padded = torch.cat((conv_states[slots].to(x.dtype), x.unsqueeze(-1)), dim=-1)
    conv_states[slots] = padded[..., 1:].to(conv_states.dtype)
    return _convolve(padded, weight, bias, activation).squeeze(-1)


def _convolve(
    padded: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, activation: str | None
) -> torch.Tensor:
    windows = padded.float().unfold(-1, weight.shape[-1], 1)
    out = (windows * weight.float().unsqueeze(-2)).sum(-1)
    if bias is not None:
        out = out + bias.float().unsqueeze(-1)
    if activation in ("silu", "swish"):
        out = F.silu(out)
    return out.to(padded.dtype)


def requests_of(starts: torch.Tensor) -> Iterator[slice]:
    """The tokens of each request, by where they begin: ``[requests + 1]``."""
    edges = starts.tolist()
    return (slice(*pair) for pair in zip(edges, edges[1:], strict=False))
