"""Results of prompts: log-probabilities and embeddings that are not finite end their requests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch

from ascend_gguf.srt.not_finite import abort_reason


def process_batch_result_prefill(original: Callable, self: Any, batch: Any, result: Any) -> None:
    """Overrides ``SchedulerBatchResultProcessor.process_batch_result_prefill``.

    A reason to discard a request's output is the engine's own way to end it.
    """
    if batch.return_logprob or not self.is_generation:
        if result.copy_done is not None:
            result.copy_done.synchronize()
        if self.is_generation:
            what, finite = "log-probabilities of the prompt", _finite_logprobs(self, batch, result)
        else:
            what, finite = "numbers of the embedding", _finite_embeddings(result)
        for req, fine in zip(batch.reqs, finite, strict=False):
            if not fine and req.discard_output_reason is None:
                req.discard_output_reason = abort_reason(what, req.rid)
    original(self, batch, result)


def _finite_embeddings(result: Any) -> Iterator[bool]:
    for embedding in result.embeddings:
        if embedding.is_sparse:
            embedding = embedding.coalesce().values()
        yield bool(torch.isfinite(embedding).all())


def _finite_logprobs(self: Any, batch: Any, result: Any) -> Iterator[bool]:
    output = result.logits_output
    if hasattr(output, "finalize_input_logprobs"):  # not before 0.5.21
        output.finalize_input_logprobs()
    counts = (
        self.logprob_result_processor.calculate_num_input_logprobs(req, length, start)
        for req, length, start in zip(
            batch.reqs,
            result.extend_input_len_per_req,
            result.extend_logprob_start_len_per_req,
            strict=True,
        )
    )
    ends = accumulate(counts, initial=0)
    for i, (start, end) in enumerate(pairwise(ends)):
        parts = [
            None if output.input_token_logprobs is None else output.input_token_logprobs[start:end]
        ]
        for values in (
            output.input_token_ids_logprobs_val,
            output.next_token_token_ids_logprobs_val,
        ):
            parts.append(values[i] if values and i < len(values) else None)
        yield not any(map(_has_nan, parts))


def _has_nan(values: Any) -> bool:
    if values is None:
        return False
    if isinstance(values, torch.Tensor):
        return bool(torch.isnan(values).any())
    if isinstance(values, (list, tuple)):
        return any(map(_has_nan, values))
    return math.isnan(values)
