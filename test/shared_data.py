"""Finds the project's shared data, which a clone of the repository does not bring along."""

from __future__ import annotations

import os
from pathlib import Path

_REPOSITORY = Path(__file__).resolve().parents[1]


def shared_path(*parts: str) -> Path | None:
    """A file or folder of the shared data; None where it is absent.

    Looks in ``$ASCEND_GGUF_SHARED``, else in ``shared`` beside the repository.
    """
    root = Path(os.environ.get("ASCEND_GGUF_SHARED") or _REPOSITORY.parent / "shared")
    path = root.joinpath(*parts)
    return path if path.exists() else None
