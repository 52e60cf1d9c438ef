"""GGUF files of nothing but a vocabulary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
from tokenizers import pre_tokenizers

from rewrite import add

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6

TEXTS = (
    "hello world",
    "  Two  spaces, 1234567 digits; I'm SURE it'S\n\n\tmixed\r\n",
    "naïve Ünïcode ÷ Ελλάδα русский हिन्दी ไทย 日本語 中文 한국어 עברית 🚀😶\u200d🌫️ \u00a0\u3000",
)


def write(path: Path, tokens: dict[str, int], model: str | None = "gpt2", **keys: Any) -> Path:
    """A file of nothing but a vocabulary: token to type, and keys below ``tokenizer.ggml``."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"model": model, **keys}.items():
        key = key.replace("__", ".")
        add(writer, key if "." in key else f"tokenizer.ggml.{key}", value)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(tokens.values()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def byte_tokens(*normal: str) -> dict[str, int]:
    """The 256 bytes, ``ab``, and ``normal``; ids in this order."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return dict.fromkeys([*alphabet, "ab", *normal], NORMAL)


#: The id of the first special token of :func:`write_bytes`.
SPECIAL = 257


def write_bytes(path: Path, *special: str, **keys: Any) -> Path:
    """A byte-level vocabulary with one merge and special tokens."""
    tokens = byte_tokens() | dict.fromkeys(special, CONTROL)
    return write(path, tokens, **{"pre": "qwen2", "merges": ["a b"], **keys})
