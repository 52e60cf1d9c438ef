"""Operators of torch that kernels of this package do, so that a graph needs no Python for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ascend_gguf.cpu.copies import convert, converts, copy_rows, has_rows

_aten = torch.ops.aten


def _to_copy(out: torch.Tensor, x: torch.Tensor, **_: object) -> bool:
    if not converts(x, out):
        return False
    convert(x, out)
    return True


def _index_put(
    out: torch.Tensor,
    x: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
) -> bool:
    places = indices[0]
    if (
        len(indices) != 1
        or places is None
        or accumulate
        or places.dtype != torch.int64
        or places.dim() != 1
        or not places.is_contiguous()
        or values.dtype != x.dtype
        or not has_rows(x)
        or bool((places < 0).any())
    ):
        return False
    rows = values.expand(*places.shape, *x.shape[1:])  # as Python writes a single row
    if not has_rows(rows):
        return False
    copy_rows(rows, out, places)
    return True


#: Operator -> writes to its result, which has been computed, the same again by kernels, or returns
#: False and does nothing.  Takes the result and the operator's arguments.
LOWERINGS: dict[object, Callable[..., bool]] = {
    _aten._to_copy.default: _to_copy,
    _aten.index_put_.default: _index_put,
}
