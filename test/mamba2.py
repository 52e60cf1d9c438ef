"""Mamba-2's recurrence, token by token, in float64, and inputs for it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

HEADS, GROUPS, SIZE, STATE = 6, 2, 8, 16
#: Tokens of requests: one, less than a chunk, a chunk, several.
LENGTHS = (1, 5, 64, 150)
STARTS = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)])
#: Slots of a cache of ten.
SLOTS = torch.tensor([7, 2, 9, 0])


def some_inputs() -> dict[str, torch.Tensor]:
    """Of prompts, and a cache of states; names are those of the engine's kernels."""
    torch.manual_seed(0)
    tokens = int(STARTS[-1])
    return {
        "x": torch.randn(tokens, HEADS, SIZE),
        "dt": torch.randn(tokens, HEADS),
        "A": -torch.rand(HEADS) * 2,
        "B": torch.randn(tokens, GROUPS, STATE),
        "C": torch.randn(tokens, GROUPS, STATE),
        "D": torch.randn(HEADS),
        "dt_bias": torch.randn(HEADS),
        "states": torch.randn(10, HEADS, SIZE, STATE),
    }


def recurrence(
    inputs: dict[str, torch.Tensor], lengths: tuple[int, ...] = LENGTHS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs and states of the first tokens of each request, by the formula of the paper."""
    x = {name: tensor.double() for name, tensor in inputs.items()}
    step = F.softplus(x["dt"] + x["dt_bias"])
    B, C = (x[name].repeat_interleave(HEADS // GROUPS, 1) for name in "BC")
    states, out = x["states"].clone(), torch.empty_like(x["x"])
    for slot, first, length in zip(SLOTS, STARTS, lengths, strict=False):
        for token in range(first, first + length):
            decay = (step[token] * x["A"]).exp()[:, None, None]
            taken = (step[token, :, None] * x["x"][token])[:, :, None] * B[token, :, None]
            states[slot] = decay * states[slot] + taken
            skipped = x["D"][:, None] * x["x"][token]
            out[token] = (states[slot] * C[token, :, None]).sum(-1) + skipped
    return out, states
