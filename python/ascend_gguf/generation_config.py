"""Recommended sampling and stop tokens, from a GGUF file's metadata."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ascend_gguf.reader import GGUFFile, open_gguf
from ascend_gguf.tokenizer import stop_token_ids

if TYPE_CHECKING:
    from transformers import GenerationConfig


class _Setting(NamedTuple):
    """A key below ``general.sampling`` (gguf ``Keys.General``), with llama.cpp's range.

    Attributes:
        name: transformers' name.
        above: exclusive lower bound.
        most: inclusive upper bound.
        least: smaller values mean the same as this one.
        off: the engine's value for ``least`` or less.
    """

    name: str
    above: float = -math.inf
    most: float = math.inf
    least: float | None = None
    off: float | None = None


_SAMPLING = {
    "temp": _Setting("temperature", least=0),
    "top_k": _Setting("top_k", most=2**31 - 1, least=0, off=-1),
    "top_p": _Setting("top_p", above=0),
    "min_p": _Setting("min_p", most=1, least=0),
    "penalty_repeat": _Setting("repetition_penalty", above=0, most=2),
}
#: Settings that the engine does not have, with the value that turns them off.
_WITHOUT = {"mirostat": 0, "xtc_probability": 0.0}


def load_generation_config(path: str | os.PathLike) -> GenerationConfig:
    """transformers' generation configuration of the model in the GGUF file at ``path``.

    ``eos_token_id`` is the list of all stop tokens
    (:func:`ascend_gguf.tokenizer.stop_token_ids`); everything else comes from the file.

    Raises:
        GGUFError: the file is damaged, or a value is not a number or out of range.
    """
    from transformers import GenerationConfig

    file = open_gguf(path)
    stops = sorted(stop_token_ids(path))
    return GenerationConfig(eos_token_id=stops or None, **recommended_sampling(file))


def recommended_sampling(file: GGUFFile) -> dict[str, float]:
    """The settings that the file recommends, by transformers' names.

    Raises:
        GGUFError: a value is not a number or out of range.
    """
    return {
        setting.name: value
        for key, setting in _SAMPLING.items()
        if (value := _value(file, key, setting)) is not None
    }


def ignored_settings(file: GGUFFile) -> list[str]:
    """Keys of sampling settings that the file turns on and the engine does not have."""
    keys = {f"general.sampling.{key}": off for key, off in _WITHOUT.items()}
    return [key for key, off in keys.items() if file.metadata.get(key, off) != off]


def suppressed_tokens(file: GGUFFile) -> tuple[int, ...]:
    """Tokens that are never generated; ids outside the vocabulary are ignored.

    Source: ``tokenizer.ggml.suppress_tokens``, which llama.cpp's sampler gives a bias of -inf.

    Raises:
        GGUFError: the value is not an array of integers.
    """
    key = "tokenizer.ggml.suppress_tokens"
    ids = file.metadata.get(key)
    if ids is None:
        return ()
    if not isinstance(ids, np.ndarray) or ids.dtype.kind not in "iu":
        raise file.error(
            "invalid value", key, found=f"{ids!r:.80}", expected="an array of token ids"
        )
    tokens = len(file.metadata.get("tokenizer.ggml.tokens", ()))
    return tuple(ids[(ids >= 0) & (ids < tokens)].tolist())


def _value(file: GGUFFile, key: str, setting: _Setting) -> float | None:
    key = f"general.sampling.{key}"
    value = file.metadata.get(key)
    if value is None:
        return None
    is_number = type(value) in (int, float) and math.isfinite(value)
    if is_number and setting.name == "top_k":
        is_number = value == int(value)
    if not is_number or not setting.above < value <= setting.most:
        bounds = [f"above {setting.above}"] * (setting.above > -math.inf)
        bounds += [f"at most {setting.most}"] * (setting.most < math.inf)
        raise file.error(
            "invalid value",
            key,
            found=f"{value!r:.80}",
            expected=", ".join(["a number", *bounds]),
            hint="Correct it with `gguf-set-metadata` of the gguf package, or put a "
            "generation_config.json beside the file.",
        )
    if setting.least is not None and value <= setting.least:
        return setting.least if setting.off is None else setting.off
    if setting.name == "top_p":
        return min(value, 1.0)
    return int(value) if setting.name == "top_k" else value
