"""The attention window of Command R7B."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.device import uses_ascend_methods


def exclude_token_from_window(result: None, self: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER ``CohereAttention.__init__``: count the token itself in its window.

    A window of the configuration includes the token, one of the engine's attention does not; the
    engine's other models subtract one.
    """
    if uses_ascend_methods() and self.sliding_window_size > 0:
        self.attn.sliding_window_size = self.sliding_window_size - 1
