"""Norms and products with gates on the CPU beside torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ascend_gguf.cpu.gated_rows import gated_rms_norm, multiply_by_sigmoid

GROUPS, SIZE = 2, 40


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Rows that are parts of longer ones, as projections have them."""
    torch.manual_seed(0)
    both = torch.randn(300, 2 * GROUPS * SIZE)
    return tuple(both.chunk(2, -1))


@pytest.mark.parametrize("gate_first", [False, True])
@pytest.mark.parametrize("groups", [1, GROUPS])
def test_norm(inputs, groups, gate_first):
    x, gate = inputs
    weight = torch.rand(GROUPS * SIZE)
    found = gated_rms_norm(x, weight, gate, 1e-6, groups=groups, gate_first=gate_first)
    gates = F.silu(gate)
    parts = (x * gates if gate_first else x).unflatten(-1, (groups, -1))
    expected = F.rms_norm(parts, parts.shape[-1:], eps=1e-6).flatten(1) * weight
    torch.testing.assert_close(found, expected if gate_first else expected * gates)


def test_product(inputs):
    x, gate = inputs
    expected, before = x * gate.sigmoid(), gate.clone()
    multiply_by_sigmoid(x, gate)
    torch.testing.assert_close(x, expected)
    assert torch.equal(gate, before)
