"""From what a user names to a file that can be opened: of a model on the Hub, its header alone."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from ascend_gguf.errors import GGUFError
from ascend_gguf.hub import Reference, find_files, list_files, parse_reference, unreachable
from ascend_gguf.reader import GGUFFile, open_gguf
from ascend_gguf.reader.shard import read_shard

# The first bytes that are asked for, and how much more at least.
_STEP = 1 << 18


@contextmanager
def opened(model: str, revision: str | None = None) -> Iterator[GGUFFile]:
    """The model: a file, one of a split model's, a folder, or a reference to the Hub.

    Of a model on the Hub the headers are read, by HTTP ranges.  Its file looks whole, but its
    tensors are zeros; it is gone afterwards.

    Raises:
        GGUFError: there is no such model, or it is damaged.
    """
    reference = None if os.path.exists(model) else parse_reference(model)
    if reference is None:
        yield open_gguf(model)
        return
    with tempfile.TemporaryDirectory(prefix="ascend-gguf-") as folder:
        try:
            yield open_gguf(_headers(reference, reference.revision or revision, Path(folder)))
        except GGUFError as error:
            if error.file is not None and error.file.startswith(folder):
                error.file = f"{reference.repo}{error.file.removeprefix(folder)}"
            raise


def _headers(reference: Reference, revision: str | None, folder: Path) -> Path:
    """The (first) file of a model of which only headers are there."""
    names = find_files(reference, list_files(reference.repo, revision, None))
    files = [folder / PurePosixPath(name).name for name in names]
    for name, file in zip(names, files, strict=True):
        header = _Header(reference.repo, name, revision, file)
        read_shard(file, header.fetch)
    return files[0]


class _Header:
    """A file on the Hub whose first bytes are fetched as they are needed."""

    def __init__(self, repo: str, name: str, revision: str | None, file: Path) -> None:
        from huggingface_hub import hf_hub_url

        self._what = f"{repo}/{name}"
        self._url = hf_hub_url(repo, name, revision=revision)
        self._file = file
        self._there = 0
        data, size = self._get(_STEP)
        file.write_bytes(data)
        os.truncate(file, size)  # no disk space is taken for the rest
        self._there, self._size = len(data), size

    def fetch(self, nbytes: int) -> int:
        """Have at least the first ``nbytes`` bytes; returns how many there are."""
        if nbytes > self._there:
            step = max(_STEP, self._there // 4)
            data, _ = self._get(min(max(nbytes, self._there + step), self._size))
            with self._file.open("r+b") as file:
                file.seek(self._there)
                file.write(data)
            self._there += len(data)
        return self._there

    def _get(self, end: int) -> tuple[bytes, int]:
        """The bytes up to ``end`` that are not there yet, and the size of the whole file."""
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        wanted = f"bytes={self._there}-{end - 1}"
        headers: dict[str, Any] = {**build_hf_headers(), "Range": wanted}
        headers["Accept-Encoding"] = "identity"
        try:
            with get_session().stream("GET", self._url, headers=headers) as reply:
                hf_raise_for_status(reply)
                if reply.status_code != 206:
                    raise GGUFError(
                        "the server sends whole files alone (no HTTP ranges)",
                        file=self._what,
                        hint="Download the file, and name it.",
                    )
                size = int(reply.headers["Content-Range"].rpartition("/")[2])
                return reply.read(), size
        except GGUFError:
            raise
        except Exception as error:  # from the HTTP library that the Hub's client uses
            raise unreachable(self._what, error) from error
