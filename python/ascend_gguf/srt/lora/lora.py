"""LoRA adapters on a model from a GGUF file."""

from __future__ import annotations

from collections.abc import Callable

from sglang.srt.configs.load_config import LoadConfig, LoadFormat
from sglang.srt.lora.lora import LoRAAdapter


def initialize_weights(original: Callable, self: LoRAAdapter) -> None:
    """AROUND ``LoRAAdapter.initialize_weights``: an adapter is not GGUF where the model is.

    The engine reads adapters in the model's own format, and knows no such adapters in GGUF.
    """
    if self.load_config.load_format == LoadFormat.GGUF:
        self.load_config = LoadConfig(download_dir=self.load_config.download_dir)
    original(self)
