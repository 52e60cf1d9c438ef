"""The model's tokenizer from a GGUF file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.utils.hf_transformers import tokenizer as engine

from ascend_gguf.srt.utils.hf_transformers.common import reads_from
from ascend_gguf.tokenizer import load_tokenizer, stop_token_ids
from ascend_gguf.tokenizer.chat_templates import with_tools


def reads_tokenizer_from(name: str) -> bool:
    """True if ``name`` is a GGUF file whose tokenizer this package provides."""
    return reads_from(name, unless="tokenizer_config.json")


def get_tokenizer(
    original: Callable,
    tokenizer_name: str,
    *args: Any,
    tokenizer_mode: str = "auto",
    trust_remote_code: bool = False,
    tokenizer_revision: str | None = None,
    tokenizer_backend: str = "huggingface",
    **kwargs: Any,
):
    """AROUND ``get_tokenizer``: a GGUF file's tokenizer from its own metadata.

    Raises:
        GGUFError: the file is damaged, or holds no tokenizer that is known.
    """
    if not reads_tokenizer_from(tokenizer_name):
        return original(
            tokenizer_name,
            *args,
            tokenizer_mode=tokenizer_mode,
            trust_remote_code=trust_remote_code,
            tokenizer_revision=tokenizer_revision,
            tokenizer_backend=tokenizer_backend,
            **kwargs,
        )
    # Whether its chat template can be used was found out before anything was started.
    tokenizer = load_tokenizer(tokenizer_name, check_template=False)
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = with_tools(tokenizer.chat_template)
    engine._install_tokenizer_warnings_filter(tokenizer)
    engine._fix_special_tokens_pattern(tokenizer)
    # Beside the model's own: the tokenizer given may be another file's.
    tokenizer.additional_stop_token_ids = set(stop_token_ids(tokenizer_name)) or None
    return engine.patch_tokenizer(tokenizer)
