"""Recurrent states by torch's operators, as on an NPU, beside the recurrence in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

import delta_rule as delta_rule_oracle
import mamba2 as state_space_oracle
from ascend_gguf import torch_delta_rule as delta_rule
from ascend_gguf import torch_state_space as state_space
from ascend_gguf.torch_delta_rule import gates

Inputs = dict[str, torch.Tensor]
Rows = torch.Tensor | slice


@dataclass(frozen=True)
class Model:
    """What :meth:`tokens` makes of inputs is what ``scan`` and ``step`` of ``code`` take first."""

    code: ModuleType
    oracle: ModuleType
    inputs: Callable[[], Inputs]
    tokens: Callable[[Inputs, Rows], tuple]
    atol: float

    def close(self, found: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=self.atol)


def kimi_tokens(inputs: Inputs, rows: Rows) -> tuple:
    (g,), (beta,) = gates(*(inputs[name] for name in ("A_log", "a", "b", "dt_bias")))
    share = delta_rule_oracle.VALUES // delta_rule_oracle.KEYS
    q, k = (inputs[name][0].repeat_interleave(share, 1) for name in "qk")
    return (delta_rule.Tokens(*(part[rows] for part in (q, k, inputs["v"][0], g, beta))),)


def mamba_tokens(inputs: Inputs, rows: Rows) -> tuple:
    heads = state_space.Heads(inputs["A"], inputs["D"], inputs["dt_bias"])
    return *(inputs[name][rows] for name in ("x", "dt", "B", "C")), heads


def kimi_inputs() -> Inputs:
    return delta_rule_oracle.some_inputs((delta_rule_oracle.KEY_SIZE,))


KIMI = Model(delta_rule, delta_rule_oracle, kimi_inputs, kimi_tokens, 1e-5)
MAMBA = Model(state_space, state_space_oracle, state_space_oracle.some_inputs, mamba_tokens, 1e-4)


@pytest.mark.parametrize(
    "model, size, last",
    [(KIMI, 16, 5), (KIMI, 7, 5), (MAMBA, 64, 2), (MAMBA, 7, 2)],
    ids=["Kimi, chunks of 16", "Kimi, more than 16", "Mamba-2, chunks of 64", "Mamba-2, more"],
)
def test_prompts(model: Model, size: int, last: int) -> None:
    """Outputs, states, and those within the last prompt that somebody wants."""
    oracle, inputs = model.oracle, model.inputs()
    expected, states = oracle.recurrence(inputs)
    chunks = state_space.Chunks(oracle.LENGTHS, size, "cpu")
    first = chunks.starts.index(int(oracle.STARTS[3]))
    arguments = *model.tokens(inputs, slice(None)), inputs["states"][oracle.SLOTS], chunks
    out, found, kept = model.code.scan(*arguments, [first, first + 1, first + last])
    model.close(out, expected)
    model.close(found, states[oracle.SLOTS])
    for number, state in kept.items():
        lengths = (0, 0, 0, (number - first) * size)
        model.close(state, oracle.recurrence(inputs, lengths)[1][oracle.SLOTS[3]])


@pytest.mark.parametrize("model", [KIMI, MAMBA], ids=["Kimi", "Mamba-2"])
def test_decoding(model: Model) -> None:
    """Token by token, what a prompt gives at once; other requests keep their states."""
    oracle, inputs = model.oracle, model.inputs()
    expected, states = oracle.recurrence(inputs)
    for count in range(oracle.LENGTHS[1]):
        lives = torch.tensor([count < length for length in oracle.LENGTHS])
        rows = (oracle.STARTS[:-1] + count)[lives]
        given = *model.tokens(inputs, rows), inputs["states"], oracle.SLOTS[lives]
        model.close(model.code.step(*given), expected[rows])
    done = [7, 2, 1, 3, 4, 5, 6, 8]
    model.close(inputs["states"][done], states[done])
