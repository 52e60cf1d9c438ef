"""Gemma, Gemma 2 and 3, and EmbeddingGemma."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Derivation, Rename, per_layer
from ascend_gguf.architectures.fields import scale
from ascend_gguf.architectures.layers import sliding_unless
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    ATTENTION,
    EMBEDDING,
    FIELDS,
    HEAD_SIZE,
    NORMS,
    OFFSET,
    OFFSET_OUTPUT_NORM,
    OUTPUT,
    TIED_FRAME,
    WINDOW,
    mlp,
    qk_norm,
)
from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile

_BODY = (
    EMBEDDING,
    OFFSET_OUTPUT_NORM,
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight", **OFFSET),
    per_layer("post_attention_norm.weight", "hidden", "post_attention_layernorm.weight", **OFFSET),
    per_layer("ffn_norm.weight", "hidden", "pre_feedforward_layernorm.weight", **OFFSET),
    per_layer("post_ffw_norm.weight", "hidden", "post_feedforward_layernorm.weight", **OFFSET),
    *ATTENTION,
    *mlp(),
)

# Embeddings are multiplied by sqrt(hidden size), and each layer adds the output of a norm with
# large weights.  vLLM refuses float16 for both models.
_RESIDUALS = "residuals of Gemma models exceed its range, which ends at 65,504"

_FINAL_SOFT_CAP = {"final_logit_softcapping": scale("final_logit_softcapping")}
_ACTIVATION = {"hidden_activation": ("gelu_pytorch_tanh",)}


def _query_scale(layers_of_27b: int) -> Derivation:
    """Queries are divided by sqrt(head size); in the 27B model by sqrt(hidden size / heads).

    Source: llama.cpp's ``f_attention_scale``, which recognizes the model by its depth.
    """

    def derive(file: GGUFFile, attributes: Attributes) -> Attributes:
        if attributes["num_hidden_layers"] == layers_of_27b:
            scale = attributes["hidden_size"] // attributes["num_attention_heads"]
        else:
            scale = attributes["head_dim"]
        return {"query_pre_attn_scalar": scale}

    return derive


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="gemma",
        model_type="gemma",
        fields=FIELDS | HEAD_SIZE,
        fixed=_ACTIVATION,
        # The engine's norms multiply by the weight alone.
        tensors=TIED_FRAME + NORMS + ATTENTION + mlp(),
    ),
    Architecture(
        name="gemma2",
        model_type="gemma2",
        fields=FIELDS
        | HEAD_SIZE
        | WINDOW
        | _FINAL_SOFT_CAP
        | {"attn_logit_softcapping": scale("attn_logit_softcapping")},
        defaults={
            "sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
        fixed=_ACTIVATION,
        tensors=_BODY,
        # The engine's name; transformers' is ``hidden_activation``.
        constants={"hidden_act": "gelu_pytorch_tanh"},
        derived=(sliding_unless(2), _query_scale(46)),
        beyond_float16=_RESIDUALS,
    ),
    Architecture(
        name="gemma3",
        model_type="gemma3_text",
        fields=FIELDS | HEAD_SIZE | WINDOW | _FINAL_SOFT_CAP,
        defaults={"final_logit_softcapping": None},
        fixed=_ACTIVATION,
        tensors=(*_BODY, OUTPUT, *qk_norm(**OFFSET)),
        rope=rope.by_layer_type(10000.0),
        derived=(sliding_unless(6), _query_scale(62)),
        beyond_float16=f"{_RESIDUALS}: 104,000 was measured",
    ),
)

#: Layers of sentence-transformers behind the pooling, if conversion was asked for them.
_DENSE = (
    Rename("dense_2.weight", "dense hidden", "projector.0.weight", dense=True, optional=True),
    Rename("dense_3.weight", "hidden dense", "projector.1.weight", dense=True, optional=True),
)


def _both_dense(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``dense_size``, rows of the first one; 0 without them."""
    first, last = (file.tensors.get(rule.gguf) for rule in _DENSE)
    if (first is None) != (last is None):
        raise GGUFError(
            "the file has one of the two layers behind the pooling",
            file=file.files[0],
            tensor=_DENSE[first is not None].gguf,
            expected="both, or neither",
            hint=CONVERT_AGAIN,
        )
    return {"dense_size": first.shape[0] if first is not None else 0}


_GEMMA_3 = ARCHITECTURES[-1]
_EMBEDDING = replace(
    _GEMMA_3,
    name="gemma-embedding",
    causal_lm="Gemma3TextModel",
    # Without a window there is no configuration of it: llama.cpp wants the key, too.
    fields={**_GEMMA_3.fields, "attention.sliding_window": "sliding_window"},
    fixed=_ACTIVATION | {"attention.causal": (False,)},
    tensors=(*(rule for rule in _GEMMA_3.tensors if rule is not OUTPUT), *_DENSE),
    constants={"use_bidirectional_attention": True},
    derived=(sliding_unless(6), _query_scale(0), _both_dense),
    embeds=True,
)

ARCHITECTURES += (_EMBEDDING,)
