"""Zeros that take no memory until they are touched."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ascend_gguf.memory.lazy_zeros import LazyZeros, Neighbours, lazy_zeros

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


LARGE_ZEROS = {
    "shape": lambda: torch.zeros((16, LARGE), dtype=torch.uint8, device="cpu"),
    "numbers": lambda: torch.zeros(16, LARGE, dtype=torch.uint8),
    "size": lambda: torch.zeros(size=(4, LARGE)),
}


def comes_when_touched(name: str) -> None:
    before = resident()
    with LazyZeros():
        zeros = LARGE_ZEROS[name]()
    assert zeros.nbytes == 16 * LARGE
    assert resident() - before < LARGE
    row = zeros.view(torch.uint8).view(16, LARGE)[3]
    row.fill_(1)
    assert LARGE * 0.9 < resident() - before < 3 * LARGE
    assert row.sum() == LARGE and not zeros.view(torch.uint8).view(16, LARGE)[4, ::4096].any()


def neighbours_leave_together() -> None:
    memory = Neighbours(LARGE)
    tensors = [memory.zeros((LARGE // 8,)) for _ in range(8)]
    before = resident()
    for tensor in tensors:
        tensor.fill_(1)
    assert resident() - before > LARGE * 0.9
    del tensor, tensors
    memory.zeros((LARGE // 8,))  # the last of the old ones was all that was kept
    assert resident() - before < LARGE // 2


CHECKS = [f"comes_when_touched({name!r})" for name in LARGE_ZEROS] + ["neighbours_leave_together()"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory():
    """In a process of its own: another's heap may have room that was touched before."""
    checks = "; ".join(f"tests.{check}" for check in CHECKS)
    command = [sys.executable, "-c", f"import {Path(__file__).stem} as tests; {checks}"]
    subprocess.run(command, check=True, cwd=Path(__file__).parent)


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


def test_neighbours():
    memory = Neighbours(1 << 20)
    tensors = [memory.zeros((3, 5, n)) for n in (7, 64, 100, 1000)]
    tensors.append(memory.zeros((1 << 18,)))  # large enough to have its own
    tensors += [memory.zeros((1 << 17, 1)) for _ in range(9)]  # more than one asks for at once
    for i, tensor in enumerate(tensors):
        assert tensor.dtype == torch.uint8 and tensor.is_contiguous() and not tensor.any()
        tensor.fill_(i + 1)
    for i, tensor in enumerate(tensors):
        assert torch.all(tensor == i + 1)
    small = tensors[:4] + tensors[5:]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in small)
    places = [tensor.data_ptr() - small[0].data_ptr() for tensor in small[:4]]
    assert places == [0, 128, 1088, 2624]
    assert memory.zeros((4, 0)).shape == (4, 0)
