"""Reading rows of a mapped file a piece at a time, through a small buffer that is used again.

Pages of a mapping would have to be given back, and kill the process if the file shrinks; a copy to
a buffer that stays in the cache costs less than a tenth of what is done with the bytes.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import EllipsisType

import numpy as np
import torch

from ascend_gguf.reader.mapping import locate

#: The most bytes that are read at once.  Less would cost a thread more in Python than in decoding.
BYTES_AT_ONCE = 1 << 22

_buffers = threading.local()


def read_rows(
    view: torch.Tensor, most: int | None = None
) -> Iterator[tuple[slice | EllipsisType, torch.Tensor | np.ndarray]]:
    """The bytes of ``view``, uint8 ``[..., n]``, and where in it they are, some rows at a time.

    Up to ``most`` rows, and no more than :data:`BYTES_AT_ONCE`.
    What a piece holds is valid until the next one.  A view that is no matrix or vector of a mapped
    file is one piece, as it is.

    Raises:
        GGUFError: the file no longer has the bytes, or they cannot be read.
    """
    place = locate(view) if view.dim() in (1, 2) and view.numel() and view.stride(-1) == 1 else None
    if place is None:
        yield ..., view
        return
    file, offset = place
    count, n = (1, *view.shape)[-2:]
    step = view.stride(0) if view.dim() == 2 else n
    rows = max(1, min(most or count, BYTES_AT_ONCE // max(1, step)))
    for first in range(0, count, rows):
        last = min(first + rows, count)
        # A part of each row is read with what lies between the parts: one call for all of them.
        nbytes = (last - first - 1) * step + n
        buffer = _buffer(nbytes)
        file.read_into(buffer.data[:nbytes], offset + first * step)
        if view.dim() == 1:
            yield ..., buffer[:n]
        else:
            yield slice(first, last), np.ndarray((last - first, n), np.uint8, buffer, 0, (step, 1))


def read(view: torch.Tensor) -> torch.Tensor:
    """A copy of a contiguous ``view`` of a mapped file, or the view itself if it is none.

    Raises:
        GGUFError: as :func:`read_rows`.
    """
    place = locate(view)
    if place is None or not view.is_contiguous():
        return view
    file, offset = place
    copy = torch.empty_like(view, device="cpu")
    file.read_into(copy.view(-1).view(torch.uint8).numpy().data, offset)
    return copy


def _buffer(nbytes: int) -> np.ndarray:
    """At least so many bytes that belong to this thread."""
    buffer = getattr(_buffers, "bytes", None)
    if buffer is None or len(buffer) < nbytes:
        buffer = _buffers.bytes = np.empty(nbytes, np.uint8)
    return buffer
