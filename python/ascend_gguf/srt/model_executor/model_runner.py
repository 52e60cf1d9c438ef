"""Memory for requests on the CPU, and tokens of rows that have none."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from sglang.srt.model_executor.model_runner import ModelRunner
from sglang.srt.runtime_context import get_schedule, get_spec

from ascend_gguf.cpu.sampling import finite_rows
from ascend_gguf.memory.lazy_zeros import LazyZeros
from ascend_gguf.srt.not_finite import NO_TOKEN, computes_in

if TYPE_CHECKING:
    from sglang.srt.configs.draft_parallel import DraftParallelLayout
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
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


def sample(
    original: Callable,
    self: ModelRunner,
    logits_output: LogitsProcessorOutput,
    forward_batch: ForwardBatch,
) -> torch.Tensor:
    """AROUND ``ModelRunner.sample``: a row of logits that are not all finite has no token.

    Returns :data:`NO_TOKEN` for it, which ends its request
    (:mod:`ascend_gguf.srt.managers.schedule_batch`).  Where the next step, or a draft, begins
    before this one's result is looked at, it gets what was drawn, and the result's copy for the
    host is marked (:mod:`ascend_gguf.srt.managers.utils`): an accelerator is not waited for.
    """
    if self.model_config.quantization != "gguf":
        return original(self, logits_output, forward_batch)
    logits = logits_output.next_token_logits
    finite = finite_rows(logits)
    if logits.device.type == "cpu" and bool(finite.all()):
        return original(self, logits_output, forward_batch)
    computes_in(self.model_config.dtype)
    # Operators that draw are not made for NaN: one that stops the process stops everybody's.
    logits.masked_fill_(~finite.unsqueeze(-1), 0.0)
    drawn = original(self, logits_output, forward_batch)
    if get_schedule().disable_overlap_schedule and not get_spec().speculative_algorithm:
        return drawn.masked_fill(~finite, NO_TOKEN)
    logits_output.without_token = ~finite.unsqueeze(-1)
    return drawn
