"""The model's configuration from a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.utils.hf_transformers.common import _CONFIG_REGISTRY, check_gguf_file
from transformers import PretrainedConfig

from ascend_gguf.config import load_config
from ascend_gguf.overrides import apply_overrides
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
    """AROUND ``get_config``: a GGUF file's configuration from its own metadata, then the user's.

    Raises:
        GGUFError: the file is damaged, or its architecture is not supported.
    """
    if not check_gguf_file(model):
        return original(
            model, trust_remote_code, revision, model_override_args, model_config_parser, **kwargs
        )
    if reads_config_from(model):
        config = _with_state(load_config(model))
    else:  # a config.json beside the file
        config = original(model, trust_remote_code, revision, {}, model_config_parser, **kwargs)
    apply_overrides(config, model_override_args or {})
    _say_one_width(config)
    return config


def _say_one_width(config: PretrainedConfig) -> None:
    """Of layers that are all alike: the engine knows no list where it pads widths for ranks.

    A class that wants a list gets one again (``CONFIG_REPAIRS``).
    """
    widths = getattr(config, "intermediate_size", None)
    if isinstance(widths, list) and len(set(widths)) == 1:
        config.intermediate_size = widths[0]


def _with_state(config: PretrainedConfig) -> PretrainedConfig:
    """Of a model with a recurrent state the engine's configuration, which knows its size."""
    kind = _CONFIG_REGISTRY.get(config.model_type)
    if not hasattr(kind, "mamba2_cache_params"):
        return config
    attributes = config.to_dict()
    if hasattr(config, "max_position_embeddings"):  # which transformers may call differently
        attributes |= {"max_position_embeddings": config.max_position_embeddings}
    if pattern := getattr(config, "hybrid_override_pattern", None):
        # The words of transformers' list are not the engine's.
        attributes |= {"layers_block_type": None, "hybrid_override_pattern": pattern}
    return kind(**attributes)
