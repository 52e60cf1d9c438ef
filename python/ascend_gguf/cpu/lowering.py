"""Operators of torch that kernels of this package do, so that a graph needs no Python for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ascend_gguf.codegen import threads
from ascend_gguf.cpu import elementwise
from ascend_gguf.cpu.copies import convert, converts, copy_rows, has_rows

_aten = torch.ops.aten


def _clone(out: torch.Tensor, x: torch.Tensor, **_: object) -> bool:
    if not (out.is_contiguous() and has_rows(x)):
        return False
    copy_rows(x, out)
    return True


def _copy(out: torch.Tensor, x: torch.Tensor, source: torch.Tensor, *_: object) -> bool:
    if x.dtype != source.dtype or x.shape != source.shape or not (has_rows(x) and has_rows(source)):
        return False
    copy_rows(source, out)
    return True


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


def _add(out: torch.Tensor, x: torch.Tensor, other: object, *, alpha: float = 1) -> bool:
    if not isinstance(other, torch.Tensor) or alpha != 1 or not elementwise.takes(x, other, out):
        return False
    return _same_bits(out, lambda target: elementwise.add(x, other, target))


def _mul(out: torch.Tensor, x: torch.Tensor, other: object) -> bool:
    if not isinstance(other, int | float) or not elementwise.takes(x, out):
        return False
    factor = float(other)
    return _same_bits(out, lambda target: elementwise.scale(x, factor, target))


def _same_bits(out: torch.Tensor, run: Callable[[torch.Tensor], None]) -> bool:
    """Run a kernel, unless it gives other bits than torch has given."""
    trial = torch.empty_like(out)
    with threads.listening(None):
        run(trial)
    if not torch.equal(trial, out):
        return False
    run(out)
    return True


#: Operator -> writes to its result, which has been computed, the same again by kernels, or returns
#: False and does nothing.  Takes the result and the operator's arguments.
LOWERINGS: dict[object, Callable[..., bool]] = {
    _aten.clone.default: _clone,
    _aten.copy_.default: _copy,
    _aten._to_copy.default: _to_copy,
    _aten.index_put_.default: _index_put,
    _aten.add.Tensor: _add,
    _aten.mul.Tensor: _mul,
}
