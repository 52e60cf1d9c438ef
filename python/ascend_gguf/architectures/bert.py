"""BERT, RoBERTa and what is made of them: BGE, MiniLM, E5, GTE, Arctic Embed; rerankers."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename
from ascend_gguf.architectures.heads import ENCODER_HEAD, OUTPUT, is_reranker, labels
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import LAYER_NORM_FIELDS, attention, linear, without
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile

_TYPES = "token_types.weight"


_NAMES = {
    "model.layers.": "encoder.layer.",
    "self_attn.q_proj": "attention.self.query",
    "self_attn.k_proj": "attention.self.key",
    "self_attn.v_proj": "attention.self.value",
}


def _name(of_llama: str) -> str:
    for old, new in _NAMES.items():
        of_llama = of_llama.replace(old, new)
    return of_llama


_BLOCK = (
    *attention(biased=True, output="attention.output.dense", output_biased=True),
    *linear("ffn_up", "ffn", "hidden", "intermediate.dense"),
    *linear("ffn_down", "hidden", "ffn", "output.dense"),
    *linear("attn_output_norm", "hidden", "", "attention.output.LayerNorm"),
    *linear("layer_output_norm", "hidden", "", "output.LayerNorm"),
)


def _token_types(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Rows of ``token_types.weight``, of which every token gets the first; DistilBERT has none."""
    found = file.tensors.get(_TYPES)
    return {"type_vocab_size": found.shape[0] if found is not None else 0}


def _heads(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"num_key_value_heads": attributes["num_attention_heads"]}


def _whole_head(file: GGUFFile, attributes: Attributes) -> Attributes:
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
    fields=without(LAYER_NORM_FIELDS, "attention.head_count_kv"),
    fixed={"attention.causal": (False,)},
    tensors=(
        Rename("token_embd.weight", "vocab hidden", "embeddings.word_embeddings.weight"),
        # Of RoBERTa those that tokens have: conversion leaves out the ones before.
        Rename("position_embd.weight", "positions hidden", "embeddings.position_embeddings.weight"),
        Rename(_TYPES, "types hidden", "embeddings.token_type_embeddings.weight", optional=True),
        Rename("token_embd_norm.weight", "hidden", "embeddings.LayerNorm.weight"),
        Rename("token_embd_norm.bias", "hidden", "embeddings.LayerNorm.bias"),
        *(rule.renamed(_name) for rule in _BLOCK),
    ),
    # The engine's name of what transformers does without saying.
    constants={"position_embedding_type": "absolute"},
    rope=rope.absent,
    derived=(_token_types, _heads),
    embeds=True,
)


_RERANKER = replace(
    _BERT,
    causal_lm="BertForSequenceClassification",
    mark=is_reranker,
    tensors=(*(rule.renamed("bert.{}".format) for rule in _BERT.tensors), *ENCODER_HEAD),
    derived=(_whole_head, _token_types, _heads, labels),
)

ARCHITECTURES = (_RERANKER, _BERT)
