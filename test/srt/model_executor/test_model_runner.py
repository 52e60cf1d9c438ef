"""Memory for requests on the CPU: ``ModelRunner.alloc_memory_pool`` of a GGUF model."""

from __future__ import annotations

import mmap
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ascend_gguf.srt.model_executor.model_runner import alloc_memory_pool

#: More than the heap of a process that has run many tests has free in one place.
SIZE = 1 << 29

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")


def resident() -> int:
    """Bytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def grown(device: str) -> int:
    """Bytes that a cache of SIZE takes before it is used."""

    def original(self, config, *, draft_parallel_layout):
        assert (config, draft_parallel_layout) == ("config", "layout")
        self.cache = torch.zeros((2, SIZE // 2), dtype=torch.uint8, device="cpu")

    model = SimpleNamespace(hf_config=SimpleNamespace(model_type="qwen3"))
    runner = SimpleNamespace(device=device, model_config=model)
    before = resident()
    alloc_memory_pool(original, runner, "config", draft_parallel_layout="layout")
    size = resident() - before
    assert runner.cache.nbytes == SIZE and not runner.cache[1, ::4096].any()
    return size


def test_cache_takes_memory_when_used():
    assert grown("cpu") < SIZE / 8


def test_other_devices_are_left_alone():
    assert grown("npu") > SIZE / 2
