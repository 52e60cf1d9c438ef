"""Mamba-2 on the CPU beside the recurrence, token by token, in float64."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.cpu.state_space import mamba_chunk_scan_combined, selective_state_update
from mamba2 import HEADS, LENGTHS, SIZE, SLOTS, STARTS, STATE, recurrence, some_inputs


@pytest.fixture
def inputs() -> dict[str, torch.Tensor]:
    return some_inputs()


def prompts(inputs: dict[str, torch.Tensor], before: torch.Tensor | None) -> tuple:
    out = torch.empty_like(inputs["x"])
    _, states, _ = mamba_chunk_scan_combined(
        inputs["x"][None],
        inputs["dt"][None],
        inputs["A"],
        inputs["B"][None],
        inputs["C"][None],
        chunk_size=256,
        D=inputs["D"],
        dt_bias=inputs["dt_bias"],
        cu_seqlens=STARTS.int(),
        initial_states=before,
        out=out[None],
        state_dtype=torch.float32,
    )
    return out, states


@pytest.mark.parametrize("has_before", [True, False])
def test_prompts(inputs, has_before):
    if not has_before:
        inputs["states"].zero_()
    expected, states = recurrence(inputs)
    out, found = prompts(inputs, inputs["states"][SLOTS] if has_before else None)
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.double(), states[SLOTS], rtol=1e-4, atol=1e-4)


def test_decoding(inputs):
    """Token by token, what a prompt gives at once; other requests keep their states."""
    expected, states = recurrence(inputs)

    def wide(vector: torch.Tensor, *sizes: int) -> torch.Tensor:
        return vector.view(*vector.shape, *(1 for _ in sizes)).expand(*vector.shape, *sizes)

    for step in range(LENGTHS[1]):
        lives = torch.tensor([step < length for length in LENGTHS])
        rows = (STARTS[:-1] + step)[lives]
        out = torch.empty(len(rows), HEADS, SIZE)
        selective_state_update(
            inputs["states"],
            inputs["x"][rows],
            wide(inputs["dt"][rows], SIZE),
            wide(inputs["A"], SIZE, STATE),
            inputs["B"][rows],
            inputs["C"][rows],
            wide(inputs["D"], SIZE),
            z=None,
            dt_bias=wide(inputs["dt_bias"], SIZE),
            dt_softplus=True,
            state_batch_indices=SLOTS[lives].int(),
            out=out,
        )
        torch.testing.assert_close(out.double(), expected[rows], rtol=1e-4, atol=1e-4)
    done = [7, 2, 1, 3, 4, 5, 6, 8]
    torch.testing.assert_close(inputs["states"].double()[done], states[done], rtol=1e-4, atol=1e-4)
