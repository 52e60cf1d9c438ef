"""Files that were cut with ``split`` to be uploaded, which llama.cpp does not join by itself.

Hubs once took no file of more than 50 GB, and people cut theirs: ``model.gguf-split-a``,
``model.gguf.part1of2``, ``model.gguf.001``.  Only the first of the pieces begins like a GGUF file.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

_PIECE = r"(?P<piece>[a-z]{1,2}|\d{1,5}(?:-?of-?\d{1,5})?)"
_MARK = r"(?:part|split|chunk|piece)[.\-_]?"
_PATTERNS = (
    re.compile(rf"(?P<model>.+\.gguf)[.\-_](?:{_MARK})?{_PIECE}", re.IGNORECASE),
    re.compile(rf"(?P<model>.+)[.\-_]{_MARK}{_PIECE}\.gguf", re.IGNORECASE),
)


def whole_name(name: str) -> str | None:
    """The name of the model that a file of this name is a piece of; None if it is none."""
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(name):
            model = match["model"]
            return model if model.lower().endswith(".gguf") else f"{model}.gguf"
    return None


def how_to_join(path: Path) -> str | None:
    """What to do with the pieces that ``path`` is one of, or that lie beside it in its place.

    A sentence for the user; None if there are no pieces.
    """
    whole = whole_name(path.name) or path.name
    try:
        names = [file.name for file in path.parent.iterdir() if whole_name(file.name) == whole]
    except OSError:
        return None
    if len(names) < 2:
        return None if not names else f"Download all of its pieces and join them to {whole}: `cat`."
    # In the order of split: a, b, ... aa; 1, 2, ... 10.
    names.sort(key=lambda name: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", name)])
    return f"Join them: `cat {shlex.join(names)} > {shlex.quote(whole)}`."
