"""The seed of a request, obeyed without deterministic inference."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from sglang.srt.managers.schedule_batch import ScheduleBatch
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from ascend_gguf.srt.device import serves_gguf
from ascend_gguf.srt.overrides import override


def from_schedule_batch(
    original: Callable, cls: type[SamplingBatchInfo], batch: ScheduleBatch, vocab_size: int
) -> SamplingBatchInfo:
    """AROUND the engine's, which passes seeds on with ``--enable-deterministic-inference`` alone.

    A batch with a seed has one for every request: requests that named none get random ones.
    """
    info = original(cls, batch, vocab_size)
    if not serves_gguf():
        return info
    override(info)
    if info.sampling_seed is None:
        _set_seeds(info, [request.sampling_params.sampling_seed for request in batch.reqs])
    return info


def merge_batch(original: Callable, self: SamplingBatchInfo, other: SamplingBatchInfo) -> None:
    """Overrides the engine's, which drops the seeds where one of the batches has none."""
    seeded = _seeded(self) + _seeded(other)
    if any(seeded):
        for info in (self, other):
            if info.sampling_seed is None:
                info.sampling_seed = _random_seeds(len(info)).to(info.device)
    original(self, other)
    self.gguf_seeded = seeded


def filter_batch(
    original: Callable,
    self: SamplingBatchInfo,
    keep_indices: list[int],
    keep_indices_device: torch.Tensor,
) -> None:
    """Overrides the engine's: the last request with a seed takes the others' seeds along."""
    seeded = _seeded(self)
    original(self, keep_indices, keep_indices_device)
    kept = [seeded[i] for i in keep_indices]
    if any(seeded) and not any(kept):
        self.sampling_seed = None
    self.gguf_seeded = kept


def _set_seeds(info: SamplingBatchInfo, seeds: Sequence[int | None]) -> None:
    info.gguf_seeded = [seed is not None for seed in seeds]
    if any(info.gguf_seeded):
        values = _random_seeds(len(seeds))
        for i, seed in enumerate(seeds):
            if seed is not None:
                values[i] = seed
        info.sampling_seed = values.to(info.device)


def _seeded(info: SamplingBatchInfo) -> list[bool]:
    """Which requests named a seed."""
    return getattr(info, "gguf_seeded", None) or [False] * len(info)


def _random_seeds(count: int) -> torch.Tensor:
    # Of torch's own generator, which gives all ranks the same.
    return torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64, device="cpu")
