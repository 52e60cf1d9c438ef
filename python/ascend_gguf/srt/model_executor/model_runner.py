"""Memory for requests on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from sglang.srt.model_executor.model_runner import ModelRunner

from ascend_gguf.lazy_zeros import LazyZeros

if TYPE_CHECKING:
    from sglang.srt.configs.draft_parallel import DraftParallelLayout
    from sglang.srt.model_executor.pool_configurator import MemoryPoolConfig


def alloc_memory_pool(
    original: Callable,
    self: ModelRunner,
    memory_pool_config: MemoryPoolConfig | None = None,
    *,
    draft_parallel_layout: DraftParallelLayout | None = None,
) -> None:
    """AROUND ``ModelRunner.alloc_memory_pool``: the cache takes memory as requests fill it.

    The engine gives the cache most of a machine's memory, and on the CPU writes zeros into all of
    it before the first request: a second for each gigabyte.
    """
    if self.device != "cpu" or self.model_config.quantization != "gguf":
        return original(self, memory_pool_config, draft_parallel_layout=draft_parallel_layout)
    with LazyZeros():
        return original(self, memory_pool_config, draft_parallel_layout=draft_parallel_layout)
