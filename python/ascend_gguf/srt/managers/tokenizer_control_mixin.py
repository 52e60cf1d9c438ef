"""Memory that is not released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin


async def refuse(original: Callable, self: TokenizerControlMixin, *arguments: Any) -> None:
    """Overrides the engine's, which ends the server where there is nothing to give back."""
    raise ValueError("the memory of a GGUF model is not released: --enable-memory-saver needs CUDA")
