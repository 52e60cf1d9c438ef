"""The table of characters of a Unigram vocabulary, as SentencePiece compiles it."""

from __future__ import annotations

import struct

import numpy as np


def replacement_table(texts: bytes = b"yy\0", place: int = 0, base: int = 128) -> bytes:
    """One that replaces "x" by the text at ``place`` of ``texts``.

    Args:
        base: where what follows an "x" is.
    """
    units = np.zeros(512, "<u4")
    units[0] = 256 << 10  # where the first characters are
    units[256 ^ ord("x")] = ord("x") | 256 | base << 10
    units[256 ^ ord("x") ^ 128] = 1 << 31 | place
    return struct.pack("<I", units.nbytes) + units.tobytes() + texts
