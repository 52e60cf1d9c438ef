"""Kimi Delta Attention by torch's operators, as on an NPU, beside the recurrence in float64."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.npu.delta_rule import Tokens, scan, step
from ascend_gguf.npu.state_space import Chunks
from ascend_gguf.torch_delta_rule import gates
from delta_rule import KEY_SIZE, KEYS, LENGTHS, SLOTS, STARTS, VALUES, recurrence, some_inputs


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return some_inputs((KEY_SIZE,))


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def tokens(inputs: dict[str, torch.Tensor], rows: torch.Tensor | slice) -> Tokens:
    (g,), (beta,) = gates(*(inputs[name] for name in ("A_log", "a", "b", "dt_bias")))
    q, k = (inputs[name][0].repeat_interleave(VALUES // KEYS, 1) for name in "qk")
    return Tokens(*(part[rows] for part in (q, k, inputs["v"][0], g, beta)))


@pytest.mark.parametrize("size", [16, 7], ids=["chunks of 16", "more than 16 chunks"])
def test_prompts(inputs, size):
    """Outputs, states, and those within the last prompt that somebody wants."""
    expected, states = recurrence(inputs)
    chunks = Chunks(LENGTHS, size, "cpu")
    first = chunks.starts.index(int(STARTS[3]))
    arguments = tokens(inputs, slice(None)), inputs["states"][SLOTS], chunks
    out, found, kept = scan(*arguments, [first, first + 1, first + 5])
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
        close(step(tokens(inputs, rows), inputs["states"], SLOTS[lives]), expected[rows])
    done = [7, 2, 1, 3, 4, 5, 6, 8]
    close(inputs["states"][done], states[done])
