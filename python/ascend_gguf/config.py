"""A transformers configuration from a GGUF file's metadata and tensor table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ascend_gguf.architectures import Architecture, Field, architecture_of
from ascend_gguf.architectures.dimensions import experts
from ascend_gguf.architectures.keys import check_keys
from ascend_gguf.architectures.metadata import number
from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile, open_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: transformers makes a list as long as the model is deep, whatever a damaged file says.
_MOST_LAYERS = 10_000

_TOKEN_IDS = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def load_config(path: str | os.PathLike) -> PretrainedConfig:
    """The configuration of the model in the GGUF file at ``path``.

    Everything comes from the file: sizes that transformers' own GGUF table leaves at defaults
    (head size, expert width) included.  ``dtype`` is bfloat16, in which the models of the table
    were published; GGUF does not record it.

    Raises:
        GGUFError: no such architecture, or a key is missing, of the wrong kind or impossible.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = open_gguf(path)
    architecture = architecture_of(file)
    kind = architecture.model_type
    attributes = {
        "architectures": [architecture.causal_lm or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]],
        "dtype": "bfloat16",
        "vocab_size": _vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **_fields(file, architecture),
        **architecture.constants,
        **_token_ids(file),
    }
    for derive in architecture.derived:
        attributes |= derive(file, attributes)
    check_keys(file, architecture, attributes)
    attributes["rope_parameters"] = architecture.rope(file, attributes)
    if kind in CONFIG_MAPPING:
        config = AutoConfig.for_model(kind, **attributes)
    else:
        config = PretrainedConfig(model_type=kind, **attributes)
    if "expert_used_count" in architecture.fields:
        used = number(file, "expert_used_count", required=True)
        _check_count(file, "expert_used_count", used, experts(config))
    return config


def _fields(file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    values = {}
    for key, field in architecture.fields.items():
        field = field if isinstance(field, Field) else Field(field)
        required = key in architecture.required
        value = number(file, key, field.kind, field.least, required)
        if value is not None and (field.unset is None or value != field.unset):
            values[field.attribute] = value
    # What llama.cpp takes for a file that does not say; transformers has defaults of its own.
    values = {**architecture.defaults, **values}
    heads = values["num_attention_heads"]
    values.setdefault("num_key_value_heads", heads)
    if "attention.key_length" in architecture.fields:
        values.setdefault("head_dim", values["hidden_size"] // heads)
    _check_count(file, "block_count", values["num_hidden_layers"], _MOST_LAYERS)
    if further := number(file, "nextn_predict_layers", least=0):
        # Blocks that predict further tokens count as blocks.
        _check_count(file, "nextn_predict_layers", further, values["num_hidden_layers"] - 1)
        values["num_hidden_layers"] -= further
        values["num_nextn_predict_layers"] = further
    return values


def _check_count(file: GGUFFile, key: str, found: int, limit: int) -> None:
    if found > limit:
        raise GGUFError(
            "the model cannot have that many",
            file=file.path,
            key=f"{file.architecture}.{key}",
            found=found,
            expected=f"at most {limit}",
            hint=DOWNLOAD_AGAIN,
        )


def _token_ids(file: GGUFFile) -> dict[str, int]:
    ids = {name: number(file, key, least=0) for key, name in _TOKEN_IDS.items()}
    return {name: value for name, value in ids.items() if value is not None}


def _vocab_size(file: GGUFFile) -> int:
    # The embedding's rows, not the token list: some models pad the matrix beyond the vocabulary.
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        raise GGUFError(
            "the model needs this tensor and the file lacks it",
            file=file.path,
            tensor="token_embd.weight",
            hint=DOWNLOAD_AGAIN,
        )
    return embedding.shape[0]
