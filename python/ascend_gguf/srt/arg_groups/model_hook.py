"""What the engine demands of the options for one architecture or another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.arg_groups.overrides import model_config_of
from sglang.srt.utils import is_cpu


def handle_model_specific_adjustments(original: Callable, server_args: Any) -> None:
    """AROUND the engine's checks: let EXAONE 4 attend by the CPU's backend, which has windows.

    The engine's list of those that have them lacks it.  (That of Ascend has none for this model.)
    """
    config = model_config_of(server_args).hf_config if is_cpu() else None
    if getattr(config, "model_type", None) != "exaone4":
        return original(server_args)
    pattern = config.sliding_window_pattern or None
    config.sliding_window_pattern = None
    try:
        return original(server_args)
    finally:
        config.sliding_window_pattern = pattern
