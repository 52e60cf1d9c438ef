"""Mamba-2 by torch's operators, as on an NPU, beside the recurrence in float64."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.npu.state_space import Chunks, Heads, scan, step
from mamba2 import LENGTHS, SLOTS, STARTS, recurrence, some_inputs


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return some_inputs()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def tokens(inputs: dict[str, torch.Tensor], rows: torch.Tensor | slice) -> tuple:
    heads = Heads(inputs["A"], inputs["D"], inputs["dt_bias"])
    return *(inputs[name][rows] for name in ("x", "dt", "B", "C")), heads


@pytest.mark.parametrize("size", [64, 7], ids=["chunks of 64", "more than 16 chunks"])
def test_prompts(inputs, size):
    """Outputs, states, and those within the last prompt that somebody wants."""
    expected, states = recurrence(inputs)
    chunks = Chunks(LENGTHS, size, "cpu")
    first = chunks.starts.index(int(STARTS[3]))
    arguments = *tokens(inputs, slice(None)), inputs["states"][SLOTS], chunks
    out, found, kept = scan(*arguments, [first, first + 1, first + 2])
    close(out, expected)
    close(found, states[SLOTS])
    for number, state in kept.items():
        lengths = (0, 0, 0, (number - first) * size)
        close(state, recurrence(inputs, lengths)[1][SLOTS[3]])


def test_decoding(inputs):
    """Token by token, what a prompt gives at once; other requests keep their states."""
    expected, states = recurrence(inputs)
    for count in range(LENGTHS[1]):
        lives = torch.tensor([count < length for length in LENGTHS])
        rows = (STARTS[:-1] + count)[lives]
        close(step(*tokens(inputs, rows), inputs["states"], SLOTS[lives]), expected[rows])
    done = [7, 2, 1, 3, 4, 5, 6, 8]
    close(inputs["states"][done], states[done])
