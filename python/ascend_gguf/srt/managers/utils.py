"""Results on their way to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def copy_to_cpu(original: Callable, self: Any, *args: Any, **kwargs: Any) -> None:
    """AROUND ``GenerationBatchResult.copy_to_cpu``: what is copied says which rows have no token.

    The next step has its tokens already, which are tokens of the model.
    """
    marked = getattr(self.logits_output, "marked_token_ids", None)
    if marked is not None:
        self.logits_output.marked_token_ids = None
        if marked.shape == getattr(self.next_token_ids, "shape", None):
            self.next_token_ids = marked
    original(self, *args, **kwargs)
