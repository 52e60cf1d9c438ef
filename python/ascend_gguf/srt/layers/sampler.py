"""Sampling of a GGUF model."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers import sampler as engine
from sglang.srt.layers.sampler import Sampler
from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

from ascend_gguf.cpu.sampling import filtered, finite_rows, most_probable, sample, sample_seeded
from ascend_gguf.srt.device import uses_cpu_kernels
from ascend_gguf.srt.overrides import seeing


def _sample_from_probs(original: Callable, self: Sampler, *args: Any, **kwargs: Any) -> tuple:
    """Overrides ``Sampler._sample_from_probs``: of functions of this module."""
    return _with_ours(original)(self, *args, **kwargs)


@functools.cache
def _with_ours(original: Callable) -> Callable:
    ours = {
        name: functools.partial(
            globals()[name],
            seeing(getattr(engine, name), multinomial_with_seed=multinomial_with_seed),
        )
        for name in ("sampling_from_probs_torch", "top_k_top_p_min_p_sampling_from_probs_torch")
    }
    return seeing(original, **ours)


def multinomial_with_seed(
    logprobs: torch.Tensor, seed: torch.Tensor, positions: torch.Tensor
) -> torch.Tensor:
    """As the engine's, which hashes every token of the vocabulary, in Triton.

    Returns:
        ``[rows, 1]``: a column of ``logprobs [rows, n]`` for each row.
    """
    return sample_seeded(logprobs.exp(), seed, positions).view(-1, 1).to(logprobs.device)


def _sample_from_logits(
    original: Callable,
    self: Sampler,
    logits: torch.Tensor,
    sampling_info: SamplingBatchInfo,
    simple_sampling_case: bool,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Overrides the engine's for NPUs: a batch with seeds is drawn on the host."""
    seeds = sampling_info.sampling_seed
    if seeds is None:
        return original(self, logits, sampling_info, simple_sampling_case, positions)
    probs = logits.cpu().float().softmax(-1)
    if not simple_sampling_case:
        limits = (sampling_info.top_ks, sampling_info.top_ps, sampling_info.min_ps)
        probs = filtered(probs, *(limit.cpu() for limit in limits))
    return sample_seeded(probs, seeds, positions).int().to(logits.device)


def sampling_from_probs_torch(
    original: Callable,
    probs: torch.Tensor,
    sampling_seed: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """As the engine's: int32 ``[rows]`` of ``probs [rows, vocabulary]``; seeds are its own."""
    if sampling_seed is not None or not uses_cpu_kernels(probs):
        return original(probs, sampling_seed=sampling_seed, positions=positions)
    return sample(probs)


def top_k_top_p_min_p_sampling_from_probs_torch(
    original: Callable,
    probs: torch.Tensor,
    top_ks: torch.Tensor,
    top_ps: torch.Tensor,
    min_ps: torch.Tensor,
    need_min_p_sampling: bool,
    sampling_seed: torch.Tensor | None,
    positions: torch.Tensor,
    *,
    return_filtered_probs: bool = False,
    **options: Any,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """As the engine's, of the tokens that can be drawn alone, where those are few.

    Seeds, and the filtered probabilities where they are asked for, are the engine's own.
    """
    if sampling_seed is not None and not return_filtered_probs:
        kept = filtered(*(given.cpu() for given in (probs, top_ks, top_ps, min_ps)))
        return sample_seeded(kept, sampling_seed, positions).int().to(probs.device)
    rest = top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions
    if return_filtered_probs or not uses_cpu_kernels(probs):
        return original(probs, *rest, return_filtered_probs=return_filtered_probs, **options)
    few = most_probable(probs, top_ks, top_ps)
    if few is None:
        return _with_tokens(original, probs, rest, options)
    values, ids = few
    chosen = original(values, *rest)
    return ids.gather(1, chosen.long().view(-1, 1)).view(-1).int()


def _with_tokens(
    original: Callable, probs: torch.Tensor, rest: tuple, options: dict[str, Any]
) -> torch.Tensor:
    """The engine's, and -1 for rows that are NaN: torch raises an error for all rows then."""
    finite = finite_rows(probs)
    if bool(finite.all()):
        return original(probs, *rest, **options)
    chosen = original(probs.masked_fill(~finite.unsqueeze(-1), 1.0), *rest, **options)
    return chosen.masked_fill(~finite, -1)
