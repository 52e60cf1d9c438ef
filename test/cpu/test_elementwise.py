"""Sums and multiples that a graph computes by kernels have torch's bits."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.cpu.elementwise import takes
from ascend_gguf.cpu.graph import capture

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bits_are_torchs(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, 10000).to(dtype)[..., :9984].contiguous()
    graph, found = capture(lambda: x * 0.22 + y)
    assert len(graph._steps) == 1  # one sequence of kernels
    x.copy_(torch.randn(x.shape))
    y[0, :4] = torch.tensor([torch.inf, -torch.inf, 0.0, 1e-30]).to(dtype)
    graph.replay()
    assert torch.equal(found, x * 0.22 + y)


def test_what_is_torchs() -> None:
    """Other operators of these names, and tensors of other shapes, are done by torch."""
    x, row = torch.randn(4, 32), torch.randn(32)
    both = [lambda: x + row, lambda: torch.add(x, x, alpha=2), lambda: x * x, lambda: x.T * 2]
    for function in both:
        graph, found = capture(function)
        x.add_(1)
        graph.replay()
        assert torch.equal(found, function())
    assert not takes(x, x.T) and not takes(x[:, :15].contiguous()) and not takes(x, x.half())
