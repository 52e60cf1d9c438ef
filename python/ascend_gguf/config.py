"""A transformers configuration from a GGUF file's metadata and tensor table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ascend_gguf.architectures import Architecture, architecture_of
from ascend_gguf.errors import CONVERT_AGAIN, DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile, open_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig

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
        GGUFError: no such architecture, or a key is missing or not a number.
    """
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    file = open_gguf(path)
    architecture = architecture_of(file)
    attributes = {
        "architectures": [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[architecture.model_type]],
        "dtype": "bfloat16",
        "vocab_size": _vocab_size(file),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "rope_parameters": _rope_parameters(file),
        **_fields(file, architecture),
        **architecture.constants,
        **{name: file.metadata[key] for key, name in _TOKEN_IDS.items() if key in file.metadata},
    }
    return AutoConfig.for_model(architecture.model_type, **attributes)


def _fields(file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    values = {}
    for key, attribute in architecture.fields.items():
        value = file.arch_field(key, **({} if key in architecture.required else {"default": None}))
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise GGUFError(
                "not a number",
                file=file.path,
                key=f"{file.architecture}.{key}",
                found=type(value).__name__,
                expected="one number for all layers",
                hint=CONVERT_AGAIN,
            )
        values[attribute] = value
    if "num_key_value_heads" not in values:
        values["num_key_value_heads"] = values["num_attention_heads"]
    return values


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


def _rope_parameters(file: GGUFFile) -> dict[str, Any]:
    """transformers' ``rope_parameters``.  Keys: gguf ``Keys.Rope``."""
    parameters = {
        "rope_theta": float(file.arch_field("rope.freq_base", default=10000.0)),
        "rope_type": "default",
    }
    scaling = file.arch_field("rope.scaling.type", default="none")
    if scaling in ("none", ""):
        return parameters
    if scaling not in ("linear", "yarn"):
        raise GGUFError(
            "unknown kind of rope scaling",
            file=file.path,
            key=f"{file.architecture}.rope.scaling.type",
            found=scaling,
            expected="none, linear or yarn",
            hint="Put the model's config.json beside the file.",
        )
    parameters |= {"rope_type": scaling, "factor": float(file.arch_field("rope.scaling.factor"))}
    original = file.arch_field("rope.scaling.original_context_length", default=None)
    if original is not None:
        parameters["original_max_position_embeddings"] = original
    return parameters
