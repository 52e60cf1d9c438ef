"""Sequential reading that cannot leave the file."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader.mapping import MappedFile

_UINT32 = np.dtype("<u4")
_UINT64 = np.dtype("<u8")
_unpack_uint64 = struct.Struct("<Q").unpack_from


class Cursor:
    """A position in a mapped file, and what is being read there.

    Every length found in the file is compared with the bytes that remain before anything is
    allocated for it, so a hostile length costs nothing.

    Args:
        fetch: of a file that is not whole yet: brings so many of its first bytes, or a few more,
            and returns how many are there.

    Attributes:
        size: bytes of the file that are there.
        section: the part of the file being read, in words; part of every error.
        key, tensor: the metadata key or tensor being read, if any; part of every error.
    """

    def __init__(
        self, buffer: MappedFile, file: Path, fetch: Callable[[int], int] | None = None
    ) -> None:
        self.buffer = buffer
        self.file = file
        self.size = len(buffer) if fetch is None else 0
        self._fetch = fetch
        self.offset = 0
        self.section = "header"
        self.key: str | None = None
        self.tensor: str | None = None

    def error(self, problem: str, *, hint: str = DOWNLOAD_AGAIN, **facts: Any) -> GGUFError:
        """An error about what is being read, for the caller to raise; facts as its own."""
        facts |= {"file": self.file, "tensor": self.tensor, "key": self.key}
        return GGUFError(problem, hint=hint, **facts)

    def need(self, nbytes: int) -> None:
        """Raise GGUFError unless ``nbytes`` more bytes exist."""
        end = self.offset + nbytes
        if self._fetch is not None and self.size < end <= len(self.buffer):
            self.size = self._fetch(end)
        if end > self.size:
            raise self.error(
                f"the file ends inside its {self.section}",
                found=f"{self.size} bytes",
                expected=f"at least {end}",
            )

    def numbers(self, dtype: np.dtype, count: int) -> np.ndarray:
        """``count`` numbers, copied: array (count,) of ``dtype`` in the machine's byte order."""
        self.need(dtype.itemsize * count)
        values = np.frombuffer(self.buffer, dtype, count, self.offset)
        self.offset += dtype.itemsize * count
        return values.astype(dtype.newbyteorder("="))

    def uint32(self) -> int:
        return int(self.numbers(_UINT32, 1)[0])

    def uint64(self) -> int:
        return int(self.numbers(_UINT64, 1)[0])

    def name(self, what: str) -> str:
        """One string that must be UTF-8; ``what`` says in the error whose name it is."""
        try:
            return self.strings(1, "strict")[0]
        except UnicodeDecodeError as error:
            found = error.object[:64]
            raise self.error(f"{what} is not UTF-8", found=found) from None

    def strings(self, count: int, errors: str) -> list[str]:
        """``count`` strings: for each its length in bytes (uint64), then the bytes.

        A vocabulary has 150,000 of them, so the loop is kept bare. ``errors`` is as in
        ``bytes.decode``.
        """
        self.need(8 * count)
        buffer, size, offset = self.buffer, self.size, self.offset
        strings = []
        for _ in range(count):
            start = offset + 8
            if start > size:
                self.offset = offset
                self.need(8)
                size = self.size
            end = start + _unpack_uint64(buffer, offset)[0]
            if end > size:
                self.offset = offset
                self.need(end - offset)
                size = self.size  # there are more now
            strings.append(str(buffer[start:end], "utf-8", errors))
            offset = end
        self.offset = offset
        return strings
