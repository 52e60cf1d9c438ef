"""Models with post-norm (norms on the output of a sublayer): OLMo 2 and 3, EXAONE 4."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import required
from ascend_gguf.architectures.layers import dense_layers, shared_count, sliding_unless
from ascend_gguf.architectures.metadata import Attributes, number
from ascend_gguf.architectures.parts import (
    ATTENTION,
    DENSE_OR_SPARSE,
    FIELDS,
    FRAME,
    GROUPED_DEFAULTS,
    HEAD_SIZE,
    JOINT_QK_NORM,
    NEOX_BODY,
    QK_NORM,
    UNGROUPED_ROUTING,
    WINDOW,
    expert_fields,
    mlp,
    router_bias,
)
from ascend_gguf.reader import GGUFFile


def _window_of_32b(file: GGUFFile, attributes: Attributes) -> Attributes:
    # llama.cpp recognizes the model by its depth; other sizes have no window.
    if "sliding_window" not in attributes and attributes["num_hidden_layers"] == 64:
        return {"sliding_window": 4096}
    return {}


def _pattern_letters(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``sliding_window_pattern`` as EXAONE's own configurations write it: ``LLLG``."""
    if attributes["sliding_window"] is None:
        return {}
    types = attributes["layer_types"]
    letters = "".join("G" if kind == "full_attention" else "L" for kind in types)
    pattern = letters[: letters.find("G") + 1]
    # The engine uses only the pattern's length: full attention in every n-th layer.
    if not pattern or letters != (pattern * len(letters))[: len(letters)]:
        raise file.error(
            "SGLang's model supports full attention in every n-th layer, or in all layers",
            "attention.sliding_window_pattern",
            found=letters,
            expected="a repeated pattern such as LLLG",
            hint=None,
        )
    return {"sliding_window_pattern": pattern}


def _moe_layers(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"is_moe_layer": [kind == "sparse" for kind in attributes["mlp_layer_types"]]}


_BODY = (
    *FRAME,
    per_layer("post_attention_norm.weight", "hidden", "post_attention_layernorm.weight"),
    per_layer("post_ffw_norm.weight", "hidden", "post_feedforward_layernorm.weight"),
    *ATTENTION,
    *mlp(),
)
_OLMO_BODY = _BODY + JOINT_QK_NORM

#: K-EXAONE, with norms before attention and experts, unlike its dense kin.
EXAONE_MOE = Architecture(
    name="exaone-moe",
    model_type="exaone_moe",
    fields=FIELDS | HEAD_SIZE | required(WINDOW) | expert_fields("num_experts") | UNGROUPED_ROUTING,
    defaults=GROUPED_DEFAULTS,
    fixed={"expert_gating_func": (2,)},
    tensors=(*NEOX_BODY, *QK_NORM, *DENSE_OR_SPARSE, router_bias("mlp.e_score_correction_bias")),
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
        tensors=_OLMO_BODY,
        derived=(sliding_unless(4),),
    ),
    Architecture(name="olmo2", model_type="olmo2", fields=FIELDS, tensors=_OLMO_BODY),
    Architecture(
        name="exaone4",
        model_type="exaone4",
        fields=FIELDS | WINDOW,
        tensors=_BODY + QK_NORM,
        derived=(_window_of_32b, sliding_unless(4), _pattern_letters),
    ),
)
