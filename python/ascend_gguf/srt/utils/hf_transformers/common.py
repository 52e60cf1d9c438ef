"""What decides who reads a GGUF file's metadata, and the model's generation configuration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.utils.hf_transformers.common import check_gguf_file, gguf_sidecar_dir

from ascend_gguf.generation_config import load_generation_config


def reads_from(model: str, unless: str) -> bool:
    """True if ``model`` is a GGUF file whose metadata this package reads for the engine.

    A file of the name ``unless`` beside it wins, as in the engine.
    """
    return check_gguf_file(model) and gguf_sidecar_dir(model, unless) is None


def get_generation_config(
    original: Callable,
    model: str,
    trust_remote_code: bool,
    revision: str | None = None,
    **kwargs: Any,
):
    """AROUND ``get_generation_config``: what ends an answer, from the GGUF file itself.

    Raises:
        GGUFError: the file is damaged.
    """
    if reads_from(model, unless="generation_config.json"):
        return load_generation_config(model)
    return original(model, trust_remote_code, revision, **kwargs)
