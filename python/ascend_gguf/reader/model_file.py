"""A model's files as one: what the rest of the project sees of GGUF."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader.locate import find_model, find_shards
from ascend_gguf.reader.mapping import file_identity
from ascend_gguf.reader.shard import Shard, read_shard
from ascend_gguf.reader.split import check_split
from ascend_gguf.reader.tensor import GGUFTensor

_REQUIRED = object()

#: Beginnings of keys that are the same for every architecture.
_OF_ALL = ("general.", "tokenizer.", "xielu.")


class GGUFFile:
    """A GGUF model, whole or split. Made by :func:`open_gguf`; shared, so not to be changed.

    Attributes:
        path: the file given, or the one found in the directory given.
        files: all the model's files; one unless it is split.
        metadata: of the first file. Python values; arrays of numbers are read-only numpy arrays,
            arrays of strings lists; bytes that are not UTF-8 appear as lone surrogates (PEP 383).
        tensors: of all files by name, in file order.
    """

    def __init__(self, path: Path, shards: tuple[Shard, ...]) -> None:
        self.path = path
        self.files = tuple(shard.path for shard in shards)
        self.metadata: Mapping[str, Any] = MappingProxyType(shards[0].metadata)
        tensors = {name: tensor for shard in shards for name, tensor in shard.tensors.items()}
        self.tensors: Mapping[str, GGUFTensor] = MappingProxyType(tensors)

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {len(self.tensors)} tensors)"

    @property
    def architecture(self) -> str:
        """The model's architecture as llama.cpp names it, such as ``qwen3moe``.

        Raises:
            GGUFError: the file does not say, or not with a string.
        """
        architecture = self._field("general.architecture", _REQUIRED)
        if not isinstance(architecture, str):
            raise self.error(
                "the architecture is not a string", "general.architecture", found=repr(architecture)
            )
        return architecture

    def key(self, name: str) -> str:
        """``ARCHITECTURE.name``, such as ``qwen3.block_count``; as it is if it is of every file."""
        return name if name.startswith(_OF_ALL) else f"{self.architecture}.{name}"

    def error(
        self, problem: str, key: str, *, hint: str | None = CONVERT_AGAIN, **facts: Any
    ) -> GGUFError:
        """An error about a key, for the caller to raise.

        Args:
            key: named as :meth:`key` takes it.
            hint, facts: of :class:`GGUFError`.
        """
        return GGUFError(problem, file=self.files[0], key=self.key(key), hint=hint, **facts)

    def arch_field(self, key: str, default: Any = _REQUIRED) -> Any:
        """The value of ``ARCHITECTURE.key``.

        Raises:
            GGUFError: the file lacks the key and there is no ``default``.
        """
        return self._field(f"{self.architecture}.{key}", default)

    def _field(self, key: str, default: Any) -> Any:
        value = self.metadata.get(key, default)
        if value is _REQUIRED:
            raise GGUFError(
                "the file lacks a key that the model needs",
                file=self.files[0],
                key=key,
                hint=CONVERT_AGAIN,
            )
        return value


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF model: parse its header, metadata and tensor table, and map its data.

    Args:
        path: a GGUF file, any one file of a split model, or a directory that holds exactly one
            model.

    Returns:
        The same object for as long as the files stay the same, so that config, tokenizer and
        weights share one parse.

    Raises:
        GGUFError: names the file, the tensor or key, what is wrong and what to do.
    """
    given = find_model(Path(path))
    files = find_shards(given)
    return _open(given, files, tuple(map(file_identity, files)))


@lru_cache(maxsize=8)
def _open(given: Path, files: tuple[Path, ...], identities: tuple) -> GGUFFile:
    # identities is only here to be part of the cache's key.
    shards = tuple(map(read_shard, files))
    check_split(shards)
    return GGUFFile(given, shards)
