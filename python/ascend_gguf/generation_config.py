"""How a model wants to be sampled, and what ends its answers, from a GGUF file's metadata."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader import open_gguf
from ascend_gguf.tokenizer import stop_token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig

#: Key below ``general.sampling`` (gguf ``Keys.General``) -> transformers' name.
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}


def load_generation_config(path: str | os.PathLike) -> GenerationConfig:
    """transformers' generation configuration of the model in the GGUF file at ``path``.

    ``eos_token_id`` is the list of all tokens that end an answer
    (:func:`ascend_gguf.tokenizer.stop_token_ids`); the rest is what the file says and no more.

    Raises:
        GGUFError: the file is damaged, or a value in it is no number.
    """
    from transformers import GenerationConfig

    file = open_gguf(path)
    values: dict[str, object] = {}
    for key, name in _SAMPLING.items():
        value = file.metadata.get(f"general.sampling.{key}")
        if value is None:
            continue
        if type(value) not in (int, float):
            raise GGUFError(
                "the value makes no sense",
                file=file.files[0],
                key=f"general.sampling.{key}",
                found=f"{value!r:.80}",
                expected="a number",
                hint=CONVERT_AGAIN,
            )
        values[name] = value
    stops = sorted(stop_token_ids(path))
    return GenerationConfig(eos_token_id=stops or None, **values)
