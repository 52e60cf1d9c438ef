"""Zeros that take no memory until they are touched."""

from __future__ import annotations

import mmap
from pathlib import Path

import pytest
import torch

from ascend_gguf.lazy_zeros import LazyZeros, lazy_zeros

LARGE = 1 << 26


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64])
def test_like_torch_zeros(dtype):
    ours, theirs = lazy_zeros((2, 3, 5), dtype), torch.zeros((2, 3, 5), dtype=dtype)
    assert (ours.dtype, ours.shape, ours.stride()) == (dtype, theirs.shape, theirs.stride())
    assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


def test_no_elements():
    assert lazy_zeros((0, 4), torch.float16).shape == (0, 4)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros((16, LARGE), dtype=torch.uint8, device="cpu"),
        lambda: torch.zeros(16, LARGE, dtype=torch.uint8),
        lambda: torch.zeros(size=(4, LARGE)),
    ],
)
def test_memory_comes_when_touched(make):
    before = resident()
    with LazyZeros():
        zeros = make()
    assert zeros.nbytes == 16 * LARGE
    assert resident() - before < LARGE
    row = zeros.view(torch.uint8).view(16, LARGE)[3]
    row.fill_(1)
    assert LARGE * 0.9 < resident() - before < 3 * LARGE
    assert row.sum() == LARGE and not zeros.view(torch.uint8).view(16, LARGE)[4, ::4096].any()


def test_steps_aside():
    with LazyZeros():
        assert torch.zeros((4, LARGE), device="meta").device.type == "meta"
        assert torch.zeros(LARGE, requires_grad=True).requires_grad
        assert torch.zeros(4, dtype=torch.int32).dtype == torch.int32
        with torch.device("meta"):
            assert torch.zeros(LARGE).device.type == "meta"
        assert torch.ones(3).sum() == 3
    out = torch.ones(4)
    with LazyZeros():
        assert torch.zeros(4, out=out) is out
    assert not out.any()
