"""The model's configuration from a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.utils.hf_transformers.common import check_gguf_file, gguf_sidecar_dir
from sglang.srt.utils.hf_transformers.gguf_native import GGUF_NATIVE_CONFIG_BUILDERS

from ascend_gguf.config import load_config
from ascend_gguf.reader import open_gguf
from ascend_gguf.srt.device import uses_ascend_methods


def reads_config_from(model: str) -> bool:
    """True if ``model`` is a GGUF file whose configuration this package provides.

    A ``config.json`` beside the file wins, as in the engine; so does the engine's own reader of
    an architecture.
    """
    return (
        uses_ascend_methods()
        and check_gguf_file(model)
        and gguf_sidecar_dir(model, "config.json") is None
        and open_gguf(model).architecture not in GGUF_NATIVE_CONFIG_BUILDERS
    )


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
