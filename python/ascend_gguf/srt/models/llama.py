"""The window of Phi-3, whose model the engine has from Llama."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention


def attend_in_window(result: None, self: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
    """AFTER ``Phi3ForCausalLM.__init__``: the window of the configuration, in every layer.

    A window of the configuration includes the token itself, one of the engine's attention does not.
    """
    config = kwargs["config"] if "config" in kwargs else args[0]
    if config.sliding_window:
        for module in self.modules():
            if isinstance(module, RadixAttention):
                module.sliding_window_size = config.sliding_window - 1
