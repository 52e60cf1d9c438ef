"""The gated delta rule token by token, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

KEYS, VALUES, KEY_SIZE, VALUE_SIZE = 2, 6, 16, 8
#: Tokens of requests: none of a chunk, one, less than a chunk, several.
LENGTHS = (1, 5, 64, 150)
STARTS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)])
#: Slots of a cache of ten.
SLOTS = torch.tensor([7, 2, 9, 0])


def some_inputs(channels: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """What the rule takes; a decay has ``channels``, none or those of a key."""
    torch.manual_seed(0)
    tokens = int(STARTS[-1])
    return {
        "q": torch.randn(1, tokens, KEYS, KEY_SIZE),
        "k": torch.randn(1, tokens, KEYS, KEY_SIZE),
        "v": torch.randn(1, tokens, VALUES, VALUE_SIZE),
        "a": torch.randn(tokens, VALUES, *channels),
        "b": torch.randn(tokens, VALUES),
        "A_log": 2 * torch.randn(VALUES),
        "dt_bias": torch.randn(VALUES, *channels),
        "states": torch.randn(10, VALUES, VALUE_SIZE, KEY_SIZE),
    }


def recurrence(
    inputs: dict[str, torch.Tensor], lengths: Sequence[int] = LENGTHS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and states, by the formula of the paper, after so many tokens of each request."""
    x = {name: tensor.double() for name, tensor in inputs.items()}
    q, k = (F.normalize(x[name][0], dim=-1, eps=0) for name in "qk")
    q, k = (heads.repeat_interleave(VALUES // KEYS, 1) for heads in (q * KEY_SIZE**-0.5, k))
    a, dt_bias = (x[name].view(*x[name].shape[:n], -1) for name, n in (("a", 2), ("dt_bias", 1)))
    # Some forget at once: nothing may overflow.
    decay = (-x["A_log"].exp()[:, None] * F.softplus(a + dt_bias)).exp()
    rate, states, out = x["b"].sigmoid(), x["states"].clone(), torch.empty_like(x["v"][0])
    for slot, first, length in zip(SLOTS, STARTS, lengths, strict=False):
        for token in range(first, first + length):
            state = states[slot] * decay[token, :, None]
            missing = x["v"][0, token] - (state @ k[token, :, :, None])[..., 0]
            update = (rate[token, :, None] * missing)[:, :, None] * k[token, :, None]
            states[slot] = state + update
            out[token] = (states[slot] @ q[token, :, :, None])[..., 0]
    return out, states
