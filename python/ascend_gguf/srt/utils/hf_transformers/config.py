"""The model's configuration from a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ascend_gguf.config import load_config
from ascend_gguf.srt.utils.hf_transformers.common import reads_from


def reads_config_from(model: str) -> bool:
    """True if ``model`` is a GGUF file whose configuration this package provides."""
    return reads_from(model, unless="config.json")


def get_config(
    original: Callable,
    model: str,
    trust_remote_code: bool,
    revision: str | None = None,
    model_override_args: dict[str, Any] | None = None,
    model_config_parser: str = "auto",
    **kwargs: Any,
):
    """AROUND ``get_config``: a GGUF file's configuration from its own metadata.

    Raises:
        GGUFError: the file is damaged, or its architecture is not supported.
    """
    if not reads_config_from(model):
        return original(
            model, trust_remote_code, revision, model_override_args, model_config_parser, **kwargs
        )
    config = load_config(model)
    for key, value in (model_override_args or {}).items():
        current = getattr(config, key, None)
        # As the engine does: an override of part of a dictionary keeps the rest of it.
        merge = isinstance(current, dict) and isinstance(value, dict)
        setattr(config, key, current | value if merge else value)
    return config
