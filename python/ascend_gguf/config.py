"""A transformers configuration from a GGUF file's metadata and tensor table."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

from ascend_gguf.architectures import Architecture, architecture_of
from ascend_gguf.architectures.dimensions import experts, heads_of
from ascend_gguf.architectures.fields import as_field
from ascend_gguf.architectures.keys import check_keys
from ascend_gguf.architectures.metadata import number, of_each_layer
from ascend_gguf.errors import CONVERT_AGAIN, DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile, open_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_Config = TypeVar("_Config")

#: Limits for damaged files: transformers makes a list with an entry per layer, the engine a table
#: with an entry per position.
_MOST_LAYERS = 10_000
_MOST_CONTEXT = 1 << 26

_TOKEN_IDS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def load_config(path: str | os.PathLike) -> PretrainedConfig:
    """The configuration of the model in the GGUF file at ``path``.

    Everything comes from the file, including sizes that transformers' own GGUF table leaves at
    defaults (head size, expert width).  ``dtype`` is bfloat16, in which these models were
    published; GGUF does not record it.

    Raises:
        GGUFError: no such architecture, or a key is missing, of the wrong kind or impossible.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    config = read_config(path)
    architecture = architecture_of(open_gguf(path))
    name = architecture.causal_lm or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture.model_type]
    config.architectures = [name] if isinstance(name, str) else list(name)
    return config


def read_config(path: str | os.PathLike) -> PretrainedConfig:
    """As :func:`load_config`, without the name of the model's class: its table takes seconds."""
    return _checked(open_gguf(path), _as_transformers)


def describe(path: str | os.PathLike) -> SimpleNamespace:
    """What :func:`read_config` gives to transformers, without transformers, which takes a second.

    Attributes that neither the file nor its architecture has are missing.

    Raises:
        GGUFError: as :func:`load_config`, but for what transformers alone refuses.
    """
    return _checked(open_gguf(path), lambda attributes: SimpleNamespace(**attributes))


def _as_transformers(attributes: Mapping[str, Any]) -> PretrainedConfig:
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    if attributes["model_type"] in CONFIG_MAPPING:
        return AutoConfig.for_model(**attributes)
    # The base class accepts any attribute.
    return PretrainedConfig(**attributes)


def _checked(file: GGUFFile, make: Callable[[Mapping[str, Any]], _Config]) -> _Config:
    architecture = architecture_of(file)
    kind = architecture.model_type
    attributes = {
        "model_type": kind,
        "dtype": "bfloat16",
        "vocab_size": _vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_fields(file, architecture),
        **architecture.constants,
        **_token_ids(file),
    }
    try:
        for derive in architecture.derived:
            attributes |= derive(file, attributes)
        check_keys(file, architecture, attributes)
        if rope := architecture.rope(file, attributes):
            attributes["rope_parameters"] = rope
        config = make(attributes)
    except GGUFError:
        raise
    except Exception as error:  # transformers' validators raise many kinds
        raise GGUFError(
            f"the metadata gives no valid configuration of a {kind} model: {error}",
            file=file.path,
            hint=CONVERT_AGAIN,
        ) from error
    if "expert_used_count" in architecture.fields:
        required = experts(config) > 0
        used = number(file, "expert_used_count", least=required, required=required)
        _check_count(file, "expert_used_count", used or 0, experts(config))
    return config


def _fields(file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    values: dict[str, Any] = {}
    by_layer: dict[str, list[int]] = {}
    for key, field in architecture.fields.items():
        field = as_field(field)
        if field.by_layer:
            value = of_each_layer(file, key, int(field.least), field.required)
        else:
            value = number(file, key, field.kind, field.least, field.required)
        if isinstance(value, list):
            by_layer[field.attribute], value = value, max(value)
        if value is not None and (field.unset is None or value != field.unset):
            values[field.attribute] = value
    # llama.cpp's defaults, not transformers'.
    values = {**architecture.defaults, **values}
    heads = values.get("num_attention_heads")  # none in a model without attention
    if heads == 0:
        raise file.error(
            "invalid value", "attention.head_count", found=0, expected="heads in at least one layer"
        )
    if heads and "num_key_value_heads" not in values:
        values["num_key_value_heads"] = heads
        if "num_attention_heads" in by_layer:
            by_layer["num_key_value_heads"] = by_layer["num_attention_heads"]
    if by_layer:
        values["sizes_by_layer"] = by_layer
    if "attention.key_length" in architecture.fields:
        values.setdefault("head_dim", values["hidden_size"] // heads)
    _check_count(file, "block_count", values["num_hidden_layers"], _MOST_LAYERS)
    if further := number(file, "nextn_predict_layers", least=0):
        # The block count includes multi-token prediction layers.
        _check_count(file, "nextn_predict_layers", further, values["num_hidden_layers"] - 1)
        values["num_hidden_layers"] -= further
        values["num_nextn_predict_layers"] = further
    _check_count(file, "context_length", values["max_position_embeddings"], _MOST_CONTEXT)
    if heads:
        _check_heads(file, values)
    return values


def _check_heads(file: GGUFFile, values: dict[str, Any]) -> None:
    config = SimpleNamespace(**values)
    layers = range(config.num_hidden_layers) if "sizes_by_layer" in values else (0,)
    pairs = {heads_of(config, layer) for layer in layers}
    for heads, kv_heads in pairs:
        none_attends = not kv_heads and len(pairs) == 1
        if none_attends or kv_heads > heads or (kv_heads and heads % kv_heads):
            raise file.error(
                "the number of query heads is not a multiple of the number of KV heads",
                "attention.head_count",
                found=heads,
                expected=f"a multiple of attention.head_count_kv, {kv_heads}",
            )


def _check_count(file: GGUFFile, key: str, found: int, limit: int) -> None:
    if found > limit:
        raise file.error(
            "value out of range", key, found=found, expected=f"at most {limit}", hint=DOWNLOAD_AGAIN
        )


def _token_ids(file: GGUFFile) -> dict[str, int]:
    """Ids of tokens that exist: converters write other ids to say that there is no such token."""
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    count = _vocab_size(file) if not isinstance(tokens, list) else len(tokens)
    ids = {name: number(file, key, least=-math.inf) for key, name in _TOKEN_IDS.items()}
    return {name: value for name, value in ids.items() if value is not None and 0 <= value < count}


def _vocab_size(file: GGUFFile) -> int:
    # The embedding's rows, not the token list: some models pad the matrix.
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise GGUFError(
            "the file lacks this tensor",
            file=file.path,
            tensor="token_embd.weight",
            hint=DOWNLOAD_AGAIN,
        )
    if len(embedding.shape) != 2:
        raise embedding.error(
            "the embedding is not a matrix",
            found=f"shape {embedding.shape}",
            expected="a row for each token",
            hint=DOWNLOAD_AGAIN,
        )
    rows = embedding.shape[0]
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > rows:
        raise embedding.error(
            "the vocabulary has more tokens than the embedding has rows",
            found=f"{rows} rows for {len(tokens)} tokens",
            expected="a row for each token",
            hint="Resize the embedding of the original model (resize_token_embeddings), and "
            "convert it again.",
        )
    return rows
