"""A transformers configuration from a GGUF file's metadata and tensor table."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ascend_gguf.architectures import Architecture, architecture_of
from ascend_gguf.errors import CONVERT_AGAIN, DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile, open_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Attributes that are not whole numbers.
_FRACTIONS = frozenset({"rms_norm_eps"})

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
        **_token_ids(file),
    }
    return AutoConfig.for_model(architecture.model_type, **attributes)


def _number(file: GGUFFile, key: str, kind: type = int, least: float = 1) -> Any:
    """The number at ``key``, of the Python type ``kind``; None where the file lacks the key."""
    value = file.metadata.get(key)
    if value is None:
        return None
    accepted = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, accepted) or not value >= least:
        expected = "a number" if kind is float else "a whole number"
        raise GGUFError(
            "the value makes no sense",
            file=file.path,
            key=key,
            found=f"{value!r:.80}",
            expected=f"{expected} of at least {least}, one for all layers",
            hint=CONVERT_AGAIN,
        )
    return kind(value)


def _fields(file: GGUFFile, architecture: Architecture) -> dict[str, Any]:
    values = {}
    for key, attribute in architecture.fields.items():
        if key in architecture.required:
            file.arch_field(key)  # raises where it is missing
        fraction = attribute in _FRACTIONS
        value = _number(
            file,
            f"{file.architecture}.{key}",
            kind=float if fraction else int,
            least=0 if fraction else 1,
        )
        if value is not None:
            values[attribute] = value
    # What llama.cpp takes for a file that does not say; transformers has defaults of its own.
    heads = values["num_attention_heads"]
    values.setdefault("num_key_value_heads", heads)
    if "head_dim" in architecture.fields.values():
        values.setdefault("head_dim", values["hidden_size"] // heads)
    _check_counts(file, values)
    return values


def _check_counts(file: GGUFFile, values: dict[str, Any]) -> None:
    for key, value, limit in (
        ("block_count", values["num_hidden_layers"], _MOST_LAYERS),
        ("expert_used_count", values.get("num_experts_per_tok", 0), values.get("num_experts", 0)),
    ):
        if value > limit:
            raise GGUFError(
                "the model cannot have that many",
                file=file.path,
                key=f"{file.architecture}.{key}",
                found=value,
                expected=f"at most {limit}",
                hint=DOWNLOAD_AGAIN,
            )


def _token_ids(file: GGUFFile) -> dict[str, int]:
    ids = {name: _number(file, key, least=0) for key, name in _TOKEN_IDS.items()}
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


def _rope_parameters(file: GGUFFile) -> dict[str, Any]:
    """transformers' ``rope_parameters``.  Keys: gguf ``Keys.Rope``."""
    prefix = f"{file.architecture}.rope"
    theta = _number(file, f"{prefix}.freq_base", kind=float)
    parameters = {"rope_theta": 10000.0 if theta is None else theta, "rope_type": "default"}
    scaling = file.metadata.get(f"{prefix}.scaling.type", "none")
    if isinstance(scaling, str) and scaling in ("none", ""):
        return parameters
    if not isinstance(scaling, str) or scaling not in ("linear", "yarn"):
        raise GGUFError(
            "unknown kind of rope scaling",
            file=file.path,
            key=f"{prefix}.scaling.type",
            found=scaling if isinstance(scaling, str) else repr(scaling),
            expected="none, linear or yarn",
            hint="Put the model's config.json beside the file.",
        )
    file.arch_field("rope.scaling.factor")  # raises where it is missing
    factor = _number(file, f"{prefix}.scaling.factor", kind=float, least=0)
    parameters |= {"rope_type": scaling, "factor": factor}
    original = _number(file, f"{prefix}.scaling.original_context_length")
    if original is not None:
        parameters["original_max_position_embeddings"] = original
    return parameters
