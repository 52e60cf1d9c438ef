"""Results on their way to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ascend_gguf.srt.not_finite import NO_TOKEN


def copy_to_cpu(original: Callable, self: Any, *args: Any, **kwargs: Any) -> None:
    """AROUND ``GenerationBatchResult.copy_to_cpu``: what is copied says which rows have no token.

    ``logits_output.without_token`` is bool ``[requests, tokens]`` of the step's first tokens of
    each request.  The next step has its tokens already, which are tokens of the model.
    """
    without = getattr(self.logits_output, "without_token", None)
    if without is not None:
        self.logits_output.without_token = None
        tokens = self.next_token_ids
        if tokens is not None and len(without) and tokens.numel() % len(without) == 0:
            rows = tokens.reshape(len(without), -1).clone()
            rows[:, : without.shape[1]].masked_fill_(without, NO_TOKEN)
            self.next_token_ids = rows.view(tokens.shape)
    original(self, *args, **kwargs)
