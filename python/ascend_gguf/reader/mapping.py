"""A file's bytes in memory, and what tells them from another file's."""

from __future__ import annotations

import mmap
import os
import sys
from bisect import bisect_right
from pathlib import Path
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch

from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError

# Python names this flag from 3.13 on only. Without it Linux refuses a private writable mapping
# larger than memory, though nothing is ever written to ours.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


class MappedFile(mmap.mmap):
    """A whole file in memory, which can also be read without touching that memory.

    Attributes:
        path: the file.
        tensors: offset of the first byte and name of each tensor, in the order of the offsets.
    """

    path: Path
    tensors: list[tuple[int, str]]
    _descriptor: int
    _address: int

    def tensor_at(self, offset: int) -> str | None:
        """The name of the tensor that byte ``offset`` is part of."""
        index = bisect_right(self.tensors, offset, key=lambda tensor: tensor[0])
        return self.tensors[index - 1][1] if index else None

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` with the file's bytes from ``offset`` on, as they are on the disk now.

        Raises:
            GGUFError: the file no longer has them, or the disk cannot read them.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._descriptor, [buffer[done:]], offset + done)
            except OSError as error:
                raise _unreadable(self.path, error, self.tensor_at(offset)) from error
            if count == 0:
                raise GGUFError(
                    "the file was cut short while it was being read",
                    file=self.path,
                    tensor=self.tensor_at(offset),
                    found=f"{os.fstat(self._descriptor).st_size} bytes",
                    expected=f"{len(self)} bytes",
                    hint=DOWNLOAD_AGAIN,
                )
            done += count

    def advise(self, offset: int, nbytes: int, advice: int) -> None:
        """Tell the system about the use of a part (``os.POSIX_FADV_...``)."""
        os.posix_fadvise(self._descriptor, offset, nbytes, advice)


_mapped: WeakValueDictionary[int, MappedFile] = WeakValueDictionary()


def map_file(path: Path) -> MappedFile:
    """Map a whole file copy-on-write: pages come from the disk when touched, and go nowhere.

    Writable because torch warns of every view into read-only memory; private so that a stray
    write cannot reach the file. The file must not shrink while the mapping lives: touching a
    page that is gone kills the process (SIGBUS). :func:`locate` tells where to read instead.

    Raises:
        GGUFError: the file cannot be opened, or is empty.
    """
    try:
        with path.open("rb") as file:
            mapping = MappedFile(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
            mapping._descriptor = os.dup(file.fileno())
    except ValueError:  # mmap's word for a file of no bytes
        raise GGUFError("the file is empty", file=path, hint=DOWNLOAD_AGAIN) from None
    except OSError as error:
        raise _unreadable(path, error) from error
    finalize(mapping, os.close, mapping._descriptor)
    mapping.path, mapping.tensors = path, []
    mapping._address = np.frombuffer(mapping, np.uint8).ctypes.data
    _mapped[mapping._address] = mapping
    return mapping


def locate(view: torch.Tensor) -> tuple[MappedFile, int] | None:
    """The mapped file that ``view`` looks into and the offset of its first byte there, if any."""
    address = view.data_ptr()
    for reference in _mapped.valuerefs():
        mapping = reference()
        if mapping is not None and 0 <= address - mapping._address < len(mapping):
            return mapping, address - mapping._address
    return None


def file_identity(path: Path) -> tuple[str, int, int, int]:
    """What changes when the file at ``path`` is rewritten or replaced.

    Raises:
        GGUFError: there is no such file, or it cannot be seen.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return os.path.realpath(path), stat.st_ino, stat.st_mtime_ns, stat.st_size


def _unreadable(path: Path, error: OSError, tensor: str | None = None) -> GGUFError:
    return GGUFError(
        f"the file cannot be read: {error.strerror}",
        file=path,
        tensor=tensor,
        hint="Check the path and its permissions.",
    )
