"""Sampling on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ascend_gguf.kernels.sampling import finite_rows, most_probable, sample
from ascend_gguf.srt.device import uses_cpu_kernels


def sampling_from_probs_torch(
    original: Callable,
    probs: torch.Tensor,
    sampling_seed: torch.Tensor | None = None,
    positions: torch.Tensor | None = None,
) -> torch.Tensor:
    """AROUND the engine's: int32 ``[rows]`` of ``probs [rows, vocabulary]``; seeds are its own."""
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
    max_top_k: int | None = None,
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """AROUND the engine's: the same, of the tokens that can be drawn alone, where those are few.

    Seeds, and the filtered probabilities where they are asked for, are the engine's own.
    """
    rest = top_ks, top_ps, min_ps, need_min_p_sampling, sampling_seed, positions
    few = None
    if sampling_seed is None and not return_filtered_probs and uses_cpu_kernels(probs):
        few = most_probable(probs, top_ks, top_ps)
    if few is None:
        if sampling_seed is None and not return_filtered_probs and uses_cpu_kernels(probs):
            return _with_tokens(original, probs, rest, max_top_k)
        return original(
            probs, *rest, return_filtered_probs=return_filtered_probs, max_top_k=max_top_k
        )
    values, ids = few
    chosen = original(values, *rest)
    return ids.gather(1, chosen.long().view(-1, 1)).view(-1).int()


def _with_tokens(
    original: Callable, probs: torch.Tensor, rest: tuple, max_top_k: int | None
) -> torch.Tensor:
    """The engine's, and -1 for rows that are NaN: torch raises an error for all rows then."""
    finite = finite_rows(probs)
    if bool(finite.all()):
        return original(probs, *rest, max_top_k=max_top_k)
    chosen = original(probs.masked_fill(~finite.unsqueeze(-1), 1.0), *rest, max_top_k=max_top_k)
    return chosen.masked_fill(~finite, -1)
