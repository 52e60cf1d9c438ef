"""One GGUF file: a whole model, or one part of a split one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader.cursor import Cursor
from ascend_gguf.reader.joining import how_to_join, whole_name
from ascend_gguf.reader.mapping import map_file
from ascend_gguf.reader.metadata import SMALLEST_PAIR, read_metadata
from ascend_gguf.reader.tensor import GGUFTensor
from ascend_gguf.reader.tensor_table import SMALLEST_ROW, read_tensor_table

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)  # 1 had 32-bit lengths and was short-lived

_UNPACK = "Unpack it."
_TO_GGUF = "Convert the model to GGUF with llama.cpp's convert_hf_to_gguf.py."
_ORIGINAL = "Convert the original model with a current llama.cpp, or download it as GGUF."

# What users have in place of a GGUF file: first bytes -> what it is, what to do.
_IMPOSTORS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "Run `git lfs pull`."),
    (b"<", "HTML or XML text", "Download the file itself, not the page about it."),
    (b"{", "JSON text", "Download the file itself: this may be the server's error message."),
    (b"\0\0\0\0", "zeros: a download that never finished", DOWNLOAD_AGAIN),
    (b"PK\3\4", "a PyTorch checkpoint or another zip archive", _TO_GGUF),
    (b"\x80\2", "a PyTorch checkpoint (pickle)", _TO_GGUF),
    (b"\x89HDF", "an HDF5 file", _TO_GGUF),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"7z\xbc\xaf", "a 7-Zip archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    (b"Rar!", "a RAR archive", _UNPACK),
    (b"tjgg", "a GGJT file, older than GGUF", _ORIGINAL),
    (b"lmgg", "a GGML file, older than GGUF, or one of whisper.cpp", _ORIGINAL),
    (b"fmgg", "a GGMF file, older than GGUF", _ORIGINAL),
    (b"algg", "a LoRA adapter in a format older than GGUF", "Pass the model's own file."),
    (b"FUGG", "a GGUF file whose bytes are swapped", DOWNLOAD_AGAIN),
)
# Eight bytes of a length come before the JSON of a safetensors file.
_SAFETENSORS = (
    "a safetensors file",
    "Pass its folder, with config.json, or convert the model to GGUF.",
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


def read_shard(path: Path, fetch: Callable[[int], int] | None = None) -> Shard:
    """Parse one file's header, metadata and tensor table; the data is only mapped.

    Args:
        fetch: of a file that is not whole yet, see :class:`Cursor`.

    Raises:
        GGUFError: the file is not GGUF, or something in it is wrong.
    """
    try:
        return _read_shard(path, fetch)
    except GGUFError as error:
        hint = how_to_join(path) if whole_name(path.name) else None
        if hint is not None:
            raise GGUFError(
                "the file is a piece of a model that was cut for uploading",
                file=path,
                found=error.problem,
                hint=hint,
            ) from error
        raise


def _read_shard(path: Path, fetch: Callable[[int], int] | None) -> Shard:
    cursor = Cursor(map_file(path), path, fetch)
    cursor.need(min(64, len(cursor.buffer)))
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
        if start.startswith(prefix) or start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(prefix):
            raise cursor.error("not a GGUF file", found=what, hint=hint)
    if start[8:10] == b'{"':
        raise cursor.error("not a GGUF file", found=_SAFETENSORS[0], hint=_SAFETENSORS[1])
    raise cursor.error(
        "not a GGUF file",
        found=start[:4],
        expected=f"{_MAGIC!r} as its first bytes",
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
    newer = "Upgrade ascend-gguf, or convert the model with a llama.cpp that writes GGUF 3."
    raise cursor.error(
        "unsupported GGUF version",
        found=version,
        expected=" or ".join(map(str, _VERSIONS)),
        hint=_ORIGINAL if version < min(_VERSIONS) else newer,
    )


def _check_count(cursor: Cursor, what: str, count: int, smallest: int) -> None:
    size = len(cursor.buffer)
    most = (size - cursor.offset) // smallest
    if count > most:
        raise cursor.error(
            f"the header counts more {what} than the file has room for",
            found=count,
            expected=f"at most {most} in {size} bytes",
        )
