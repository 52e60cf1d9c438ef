"""Short causal convolutions by torch's operators, with the last inputs of each request as a state.

A state is ``[width - 1, channels]``, as the engine's cache has it on an NPU.  sgl-kernel-npu has
kernels for the same, which are not documented: that of Triton rounds what it reads to float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

#: Tokens at once: sums are float32, and those of all would take too much memory.
_TOKENS = 2048


class Windows:
    """Where the inputs of each token of some prompts lie: once for all layers.

    Rows are those of the states, ``width - 1`` of each request, and then the tokens of all.

    Args:
        lengths: tokens of each request.
        width: of the convolution.

    Attributes:
        taps: ``[width, tokens]``, the row that each factor of a token's convolution multiplies.
        kept: ``[requests * (width - 1)]``, the rows that are the states afterwards.
    """

    def __init__(self, lengths: Sequence[int], width: int, device: torch.device | str) -> None:
        before, counts = width - 1, np.asarray(lengths, np.int64)
        starts = counts.cumsum() - counts
        request = np.arange(len(counts)).repeat(counts)
        place = np.arange(len(request)) - starts[request]

        def rows(request: np.ndarray, place: np.ndarray) -> np.ndarray:
            state, token = request * before + before, len(counts) * before + starts[request]
            return np.where(place < 0, state, token) + place

        taps = [rows(request, place - back) for back in range(before, -1, -1)]
        last = counts[:, None] + np.arange(-before, 0)
        each = np.arange(len(counts))[:, None]
        self.taps = torch.from_numpy(np.stack(taps)).to(device)
        self.kept = torch.from_numpy(rows(each, last).reshape(-1)).to(device)


def convolve_prompts(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    states: torch.Tensor,
    slots: torch.Tensor,
    has_state: torch.Tensor,
    windows: Windows,
) -> torch.Tensor:
    """The convolution of prompts, channel by channel.

    Args:
        x: ``[tokens, channels]``, the tokens of all requests.
        weight: ``[channels, width]``; ``bias``: ``[channels]``.
        states: ``[slots, width - 1, channels]``, the inputs before; those of these requests are
            replaced.
        slots: ``[requests]``.
        has_state: ``[requests]``, bool; without a state, nothing came before.

    Returns:
        ``[tokens, channels]``, float32.
    """
    before = torch.where(has_state[:, None, None], states[slots], 0)
    rows = torch.cat([before.flatten(0, 1), x.to(states.dtype)])
    states[slots] = rows.index_select(0, windows.kept).view(before.shape)
    factors = weight.float().T.contiguous()
    parts = [
        _sum([rows.index_select(0, tap).float() for tap in taps], factors, bias)
        for taps in windows.taps.split(_TOKENS, 1)
    ]
    return torch.cat(parts)


def convolve_step(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    states: torch.Tensor,
    slots: torch.Tensor,
) -> torch.Tensor:
    """As :func:`convolve_prompts`, of one token a request; nothing depends on what is computed."""
    window = torch.cat([states[slots], x.to(states.dtype)[:, None]], 1)
    states[slots] = window[:, 1:]
    return _sum(list(window.float().unbind(1)), weight.float().T.contiguous(), bias)


def _sum(
    inputs: list[torch.Tensor], factors: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    total = inputs[0] * factors[0]
    for column, factor in zip(inputs[1:], factors[1:], strict=True):
        total = torch.addcmul(total, column, factor)
    return total if bias is None else total + bias.float()


def silu(x: torch.Tensor, activation: str | None) -> torch.Tensor:
    """``x``, behind the activation of a convolution: ``silu``, ``swish`` or None."""
    return F.silu(x) if activation in ("silu", "swish") else x
