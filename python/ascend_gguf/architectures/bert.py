"""BERT, RoBERTa and what is made of them: BGE, MiniLM, E5, GTE, Arctic Embed; rerankers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ascend_gguf.architectures.base import Architecture, Rename, fraction, per_layer
from ascend_gguf.architectures.heads import ENCODER_HEAD, OUTPUT, is_reranker, labels
from ascend_gguf.architectures.parts import FIELDS
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile

_FIELDS = {key: name for key, name in FIELDS.items() if "rms" not in key and "kv" not in key} | {
    "attention.layer_norm_epsilon": fraction("layer_norm_eps")
}

_TYPES = "token_types.weight"


def _norm(gguf: str, hf: str) -> tuple[Rename, ...]:
    return tuple(Rename(f"{gguf}.{kind}", "hidden", f"{hf}.{kind}") for kind in ("weight", "bias"))


def _linear(gguf: str, rows: str, columns: str, hf: str, **options: Any) -> tuple[Rename, ...]:
    return (
        per_layer(f"{gguf}.weight", f"{rows} {columns}", f"{hf}.weight", **options),
        per_layer(f"{gguf}.bias", rows, f"{hf}.bias"),
    )


def _of_block(rule: Rename) -> Rename:
    return replace(rule, hf=str(rule.hf).replace("model.layers.", "encoder.layer."))


_BLOCK = (
    *_linear("attn_q", "hidden", "hidden", "attention.self.query"),
    *_linear("attn_k", "hidden", "hidden", "attention.self.key"),
    *_linear("attn_v", "hidden", "hidden", "attention.self.value"),
    *_linear("attn_output", "hidden", "hidden", "attention.output.dense"),
    *_linear("ffn_up", "ffn", "hidden", "intermediate.dense"),
    *_linear("ffn_down", "hidden", "ffn", "output.dense"),
    per_layer("attn_output_norm.weight", "hidden", "attention.output.LayerNorm.weight"),
    per_layer("attn_output_norm.bias", "hidden", "attention.output.LayerNorm.bias"),
    per_layer("layer_output_norm.weight", "hidden", "output.LayerNorm.weight"),
    per_layer("layer_output_norm.bias", "hidden", "output.LayerNorm.bias"),
)


def _token_types(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, int]:
    """Rows of ``token_types.weight``, of which every token gets the first; DistilBERT has none."""
    found = file.tensors.get(_TYPES)
    return {"type_vocab_size": found.shape[0] if found is not None else 0}


def _whole_head(file: GGUFFile, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing; refuse the heads that conversion changes."""
    reason = None
    if "cls.weight" not in file.tensors:
        reason = "conversion leaves out the first layer of BERT's head (pooler.dense)"
    elif _TYPES not in file.tensors:
        reason = "DistilBERT's head has another activation than conversion takes it for"
    if reason is not None:
        raise GGUFError(
            f"scores of this reranker would be wrong: {reason}",
            file=file.files[0],
            tensor=OUTPUT,
            expected="the head of RoBERTa or XLM-RoBERTa, such as bge-reranker-v2-m3",
            hint="Serve the original model in Hugging Face format.",
        )
    return {}


_BERT = Architecture(
    name="bert",
    model_type="bert",
    causal_lm="BertModel",
    fields=_FIELDS,
    required=frozenset(_FIELDS),
    fixed={"attention.causal": (False,)},
    tensors=(
        Rename("token_embd.weight", "vocab hidden", "embeddings.word_embeddings.weight"),
        # Of RoBERTa those that tokens have: conversion leaves out the ones before.
        Rename("position_embd.weight", "positions hidden", "embeddings.position_embeddings.weight"),
        Rename(_TYPES, "types hidden", "embeddings.token_type_embeddings.weight", optional=True),
        *_norm("token_embd_norm", "embeddings.LayerNorm"),
        *map(_of_block, _BLOCK),
    ),
    # The engine's name of what transformers does without saying.
    constants={"position_embedding_type": "absolute"},
    rope=lambda file, attributes: {},
    derived=(_token_types,),
    embeds=True,
)


def _of_encoder(rule: Rename) -> Rename:
    return replace(rule, hf=f"bert.{rule.hf}")


_RERANKER = replace(
    _BERT,
    causal_lm="BertForSequenceClassification",
    mark=is_reranker,
    tensors=(*map(_of_encoder, _BERT.tensors), *ENCODER_HEAD),
    derived=(_whole_head, _token_types, labels),
)

ARCHITECTURES = (_RERANKER, _BERT)
