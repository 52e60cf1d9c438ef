"""Drafted tokens are not checked with logits that are not finite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ascend_gguf.cpu.sampling import finite_rows
from ascend_gguf.srt.device import serves_gguf


def eagle_sample(
    original: Callable, verify_input: Any, batch: Any, logits_output: Any, *args: Any, **kwargs: Any
) -> tuple:
    """AROUND the engine's, of EAGLE, n-grams and draft models: where an answer has no token.

    ``logits_output.next_token_logits`` are those of the model for each drafted token,
    ``[requests * drafted, vocabulary]``.  What follows a token is said by its row, and of what is
    accepted the copy for the host is marked (:mod:`ascend_gguf.srt.managers.utils`).
    """
    if not serves_gguf() or batch.forward_mode.is_idle():
        return original(verify_input, batch, logits_output, *args, **kwargs)
    logits = logits_output.next_token_logits
    finite = finite_rows(logits)
    logits.masked_fill_(~finite.unsqueeze(-1), 0.0)
    predict, accept_lens, accept_index = original(
        verify_input, batch, logits_output, *args, **kwargs
    )
    # Rows of what each request accepted, and -1 behind that.
    logits_output.without_token = (~finite)[accept_index.clamp(min=0).long()] & (accept_index >= 0)
    return predict, accept_lens, accept_index
