"""Copies of GGUF files with changes, made by gguf-py."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def rewrite(
    source: Path,
    target: Path,
    edit: Callable[[str, np.ndarray], Iterable[tuple[str, np.ndarray]]] | None = None,
    arch: str | None = None,
    metadata: dict[str, Any] | None = None,
    keys: dict[str, tuple] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
    **writer_options: Any,
) -> None:
    """Copy a file key by key and tensor by tensor.

    Args:
        edit: what becomes of each tensor: any number of names and data (blocks as bytes).
        arch: another architecture's name, which leaves the keys of the old one.
        metadata: other values of keys, arrays as lists; None leaves one out.
        keys: keys to set or add, with the value, its type and of arrays the elements' type.
        tensors: tensors of numbers to add.
        writer_options: of ``gguf.GGUFWriter``, such as ``split_max_tensors``.
    """
    reader = _read(source, source.stat().st_mtime_ns)
    arch = arch or reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, arch, **writer_options)
    for key, entry in reader.fields.items():
        skipped = ("general.architecture", *(metadata or {}), *(keys or {}))
        if key.startswith("GGUF.") or key in skipped:
            continue
        if entry.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, entry.contents())
        else:
            writer.add_key_value(key, entry.contents(), entry.types[0])
    for key, value in (metadata or {}).items():
        _add(writer, key, value, reader.fields.get(key))
    for key, (value, kind, *element) in (keys or {}).items():
        writer.add_key_value(key, value, kind, *element)
    for name, data in (tensors or {}).items():
        writer.add_tensor(name, data)
    for tensor in reader.tensors:
        for name, data in edit(tensor.name, tensor.data) if edit else [(tensor.name, tensor.data)]:
            raw = None if data.dtype == np.float32 else tensor.tensor_type
            writer.add_tensor(name, data, raw_dtype=raw)
    finish(writer)


def finish(writer: gguf.GGUFWriter) -> None:
    """Write the file."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@functools.lru_cache(4)
def _read(source: Path, changed: int) -> gguf.GGUFReader:  # noqa: ARG001
    """A file as it is now: most are rewritten many times, and reading takes the most time."""
    return gguf.GGUFReader(source)


def _add(writer: gguf.GGUFWriter, key: str, value: Any, before: gguf.ReaderField | None) -> None:
    """A key of the type it had before, else of that of the value."""
    known = before is not None and before.types[0] != gguf.GGUFValueType.ARRAY
    if known and value is not None and not isinstance(value, list):
        writer.add_key_value(key, value, before.types[0])
    else:
        add(writer, key, value)


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A key of the type of its value; None is left out."""
    if isinstance(value, (bool, np.bool_)):
        writer.add_bool(key, bool(value))
    elif isinstance(value, int):
        (writer.add_uint32 if value >= 0 else writer.add_int32)(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif value is not None:
        writer.add_array(key, list(value))
