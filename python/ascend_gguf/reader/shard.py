"""One GGUF file: a whole model, or one part of a split one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_gguf.errors import CONVERT_AGAIN, DOWNLOAD_AGAIN
from ascend_gguf.reader.cursor import Cursor
from ascend_gguf.reader.mapping import map_file
from ascend_gguf.reader.metadata import SMALLEST_PAIR, read_metadata
from ascend_gguf.reader.tensor import GGUFTensor
from ascend_gguf.reader.tensor_table import SMALLEST_ROW, read_tensor_table

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 had 32-bit lengths and was short-lived

# What users have in place of a GGUF file: first bytes -> what it is, what to do.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "Run `git lfs pull`."),
    (b"<", "HTML or XML text", "Download the file itself, not the page about it."),
    (b"{", "JSON text", "Download the file itself: this may be the server's error message."),
    (b"\0\0\0\0", "zeros: a download that never finished", DOWNLOAD_AGAIN),
    (b"PK\3\4", "a PyTorch or zip archive", "Convert the model to GGUF."),
    (b"tjgg", "a GGJT file, older than GGUF", CONVERT_AGAIN),
    (b"lmgg", "a GGML file, older than GGUF", CONVERT_AGAIN),
    (b"fmgg", "a GGMF file, older than GGUF", CONVERT_AGAIN),
)


@dataclass(frozen=True, slots=True)
class Shard:
    """What one file says of itself.

    Attributes:
        path: the file.
        metadata: its keys and values, see :func:`read_metadata`.
        tensors: its tensors by name, in file order.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GGUFTensor]


def read_shard(path: Path) -> Shard:
    """Parse one file's header, metadata and tensor table; the data is only mapped.

    Raises:
        GGUFError: the file is not GGUF, or something in it is wrong.
    """
    cursor = Cursor(map_file(path), path)
    _check_magic(cursor)
    _check_version(cursor)
    tensor_count = cursor.uint64()
    pair_count = cursor.uint64()
    _check_count(cursor, "metadata keys", pair_count, SMALLEST_PAIR)
    _check_count(cursor, "tensors", tensor_count, SMALLEST_ROW)
    metadata = read_metadata(cursor, pair_count)
    tensors = read_tensor_table(cursor, tensor_count, metadata)
    cursor.buffer.tensors = sorted((tensor.offset, name) for name, tensor in tensors.items())
    return Shard(path, metadata, tensors)


def _check_magic(cursor: Cursor) -> None:
    start = cursor.buffer[:64]
    if start.startswith(_MAGIC):
        cursor.offset = len(_MAGIC)
        return
    for prefix, what, hint in _IMPOSTORS:
        if start.lstrip().startswith(prefix):
            raise cursor.error("not a GGUF file", found=what, hint=hint)
    raise cursor.error(
        "not a GGUF file",
        found=start[:4],
        expected=f"{_MAGIC} as its first bytes",
        hint="Pass a .gguf file.",
    )


def _check_version(cursor: Cursor) -> None:
    version = cursor.uint32()
    if version in _VERSIONS:
        return
    if int.from_bytes(version.to_bytes(4, "little"), "big") in _VERSIONS:
        raise cursor.error(
            "the file is big-endian",
            expected="little-endian",
            hint="Convert it with `gguf-convert-endian FILE little`.",
        )
    raise cursor.error(
        "unsupported GGUF version",
        found=version,
        expected=" or ".join(map(str, _VERSIONS)),
        hint=CONVERT_AGAIN,
    )


def _check_count(cursor: Cursor, what: str, count: int, smallest: int) -> None:
    most = (cursor.size - cursor.offset) // smallest
    if count > most:
        raise cursor.error(
            f"the header counts more {what} than the file has room for",
            found=count,
            expected=f"at most {most} in {cursor.size} bytes",
        )
