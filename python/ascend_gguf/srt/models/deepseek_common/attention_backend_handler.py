"""How DeepSeek's attention runs on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import (
    AttnForwardMethod,
)


def get_handler(original: Callable, *args: Any) -> Callable:
    """AROUND ``AttentionBackendRegistry.get_handler``: attend over latent vectors, always.

    For prompts the engine would expand them to keys and values, which its attention backend for
    the CPU does not look at: it reads the cache, where the latent vectors are.
    """
    if args[-1] == "torch_native":
        return lambda attn, forward_batch: AttnForwardMethod.MLA
    return original(*args)
