"""A file's bytes in memory, and what tells them from another file's."""

from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError

# Python names this flag from 3.13 on only. Without it Linux refuses a private writable mapping
# larger than memory, though nothing is ever written to ours.
_MAP_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0)


def map_file(path: Path) -> mmap.mmap:
    """Map a whole file copy-on-write: pages come from the disk when touched, and go nowhere.

    Writable because torch warns of every view into read-only memory; private so that a stray
    write cannot reach the file. The file must not shrink while the mapping lives: touching a
    page that is gone kills the process (SIGBUS).

    Raises:
        GGUFError: the file cannot be opened, or is empty.
    """
    try:
        with path.open("rb") as file:
            return mmap.mmap(
                file.fileno(),
                0,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
    except ValueError:  # mmap's word for a file of no bytes
        raise GGUFError("the file is empty", file=path, hint=DOWNLOAD_AGAIN) from None
    except OSError as error:
        raise _unreadable(path, error) from error


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


def _unreadable(path: Path, error: OSError) -> GGUFError:
    return GGUFError(
        f"the file cannot be read: {error.strerror}",
        file=path,
        hint="Check the path and its permissions.",
    )
