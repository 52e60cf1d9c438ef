"""The window of Phi-3, whose model the engine has from Llama."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.radix_attention import RadixAttention


def attend_in_window(model: torch.nn.Module, config: Any) -> None:
    """``Phi3ForCausalLM``: the window of the configuration, in every layer.

    A window of the configuration includes the token itself, one of the engine's attention does not.
    """
    if config.sliding_window:
        for module in model.modules():
            if isinstance(module, RadixAttention):
                module.sliding_window_size = config.sliding_window - 1
