"""Models with post-norm (norms on the output of a sublayer): OLMo 2 and 3, EXAONE 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.layers import sliding_unless
from ascend_gguf.architectures.metadata import number
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    PATTERN,
    QK_NORM,
    REQUIRED,
    WINDOW,
    mlp,
)
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile


def _window_of_32b(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, int]:
    # llama.cpp recognizes the model by its depth; other sizes have no window.
    if "sliding_window" not in attributes and attributes["num_hidden_layers"] == 64:
        return {"sliding_window": 4096}
    return {}


def _pattern_letters(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, str]:
    """``sliding_window_pattern`` as EXAONE's own configurations write it: ``LLLG``."""
    if attributes["sliding_window"] is None:
        return {}
    types = attributes["layer_types"]
    letters = "".join("G" if kind == "full_attention" else "L" for kind in types)
    pattern = letters[: letters.find("G") + 1]
    # The engine uses only the pattern's length: full attention in every n-th layer.
    if not pattern or letters != (pattern * len(letters))[: len(letters)]:
        raise GGUFError(
            "SGLang's model supports full attention in every n-th layer, or in all layers",
            file=file.path,
            key=f"{file.architecture}.attention.sliding_window_pattern",
            found=letters,
            expected="a repeated pattern such as LLLG",
        )
    return {"sliding_window_pattern": pattern}


_BODY = (
    *FRAME,
    per_layer("post_attention_norm.weight", "hidden", "post_attention_layernorm.weight"),
    per_layer("post_ffw_norm.weight", "hidden", "post_feedforward_layernorm.weight"),
    *ATTENTION,
    *mlp(),
)
_OLMO_BODY = (
    *_BODY,
    # Over all heads at once.
    per_layer("attn_q_norm.weight", "q", "self_attn.q_norm.weight"),
    per_layer("attn_k_norm.weight", "kv", "self_attn.k_norm.weight"),
)

ARCHITECTURES = (
    Architecture(
        name="olmo2",
        mark=lambda file: bool(number(file, "attention.sliding_window", least=0)),
        # The engine runs OLMo 3 with its OLMo 2 model.
        model_type="olmo2",
        fields=FIELDS | WINDOW,
        required=REQUIRED,
        reads=PATTERN,
        tensors=_OLMO_BODY,
        derived=(sliding_unless(4),),
    ),
    Architecture(
        name="olmo2",
        model_type="olmo2",
        fields=FIELDS,
        required=REQUIRED,
        tensors=_OLMO_BODY,
    ),
    Architecture(
        name="exaone4",
        model_type="exaone4",
        fields=FIELDS | HEAD_SIZE | WINDOW,
        required=REQUIRED,
        reads=PATTERN,
        tensors=_BODY + QK_NORM,
        derived=(_window_of_32b, sliding_unless(4), _pattern_letters),
    ),
)
