"""What the engine demands of the options for one architecture or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import model_config_of
from sglang.srt.utils import is_cpu


def handle_model_specific_adjustments(original: Callable, server_args: Any) -> None:
    """AROUND the engine's checks: let models attend by the CPU's backend that it thinks cannot.

    EXAONE 4 needs windows, which that backend has; gpt-oss needs sinks, which it has with
    :mod:`ascend_gguf.srt.layers.attention.torch_native_backend`.
    """
    config = model_config_of(server_args).hf_config
    kind = getattr(config, "model_type", None)
    # transformers writes zero for a model without windows, where the engine looks for None.
    if kind == "exaone4" and (is_cpu() or not config.sliding_window_pattern):
        hidden, value = "sliding_window_pattern", None
    elif kind == "gpt_oss" and is_cpu():
        hidden, value = "architectures", ["LlamaForCausalLM"]
    else:
        return original(server_args)
    kept = getattr(config, hidden)
    setattr(config, hidden, value)
    try:
        return original(server_args)
    finally:
        setattr(config, hidden, kept or None)
