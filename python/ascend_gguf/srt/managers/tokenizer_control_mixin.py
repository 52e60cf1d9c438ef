"""Memory that is not released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.managers.tokenizer_control_mixin import TokenizerControlMixin
from sglang.srt.utils.hf_transformers.common import check_gguf_file


async def _refuse(original: Callable, self: TokenizerControlMixin, *arguments: Any) -> None:
    """AROUND the engine's, which ends the server where there is nothing to give back."""
    if check_gguf_file(self.model_path):
        raise ValueError(
            "the memory of a GGUF model is not released: --enable-memory-saver needs CUDA"
        )
    await original(self, *arguments)


release_memory_occupation = resume_memory_occupation = _refuse
