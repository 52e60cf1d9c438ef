"""Models with post-norm (norms on the output of a sublayer): OLMo 2 and 3, EXAONE 4."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.layers import dense_layers, shared_count, sliding_unless
from ascend_gguf.architectures.metadata import number
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    GROUPED_DEFAULTS,
    GROUPED_ROUTING,
    HEAD_SIZE,
    MOE_FIELDS,
    NORMS,
    PATTERN,
    QK_NORM,
    REQUIRED,
    WINDOW,
    experts,
    mlp,
    shared_expert,
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


def _moe_layers(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, list[bool]]:
    return {"is_moe_layer": [kind == "sparse" for kind in attributes["mlp_layer_types"]]}


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

_EXPERTS = MOE_FIELDS | {"expert_count": "num_experts"}
_UNGROUPED = {key: value for key, value in GROUPED_ROUTING.items() if "group" not in key}

#: K-EXAONE, with norms before attention and experts, unlike its dense kin.
EXAONE_MOE = Architecture(
    name="exaone-moe",
    model_type="exaone_moe",
    fields=FIELDS | HEAD_SIZE | WINDOW | _EXPERTS | _UNGROUPED,
    required=REQUIRED | frozenset(WINDOW) | frozenset(_EXPERTS),
    defaults=GROUPED_DEFAULTS,
    reads=PATTERN | {"expert_shared_feed_forward_length"},
    fixed={"expert_gating_func": (2,)},
    tensors=(
        *FRAME,
        *NORMS,
        *ATTENTION,
        *QK_NORM,
        *mlp("dense"),
        *experts(kind="sparse"),
        per_layer("exp_probs_b.bias", "experts", "mlp.e_score_correction_bias", kind="sparse"),
        *shared_expert("mlp.shared_experts", kind="sparse"),
    ),
    constants={"n_group": 1, "topk_group": 1},
    derived=(sliding_unless(4), dense_layers, _moe_layers, shared_count("num_shared_experts")),
)

ARCHITECTURES = (
    EXAONE_MOE,
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
