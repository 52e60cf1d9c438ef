"""Rows of memory copied on the CPU, to other places or to another dtype: one call each."""

from __future__ import annotations

import functools

import torch

from ascend_gguf.codegen import (
    FLOATS,
    I8,
    I64,
    LANES,
    Kernel,
    Rows,
    Value,
    load,
    loop,
    pointer,
    rows,
    store,
    tile_loop,
)

# Bytes, and elements, that are worth a thread's while.
_TILE_BYTES, _TILE_ELEMENTS = 1 << 16, 1 << 15


def copy_rows(x: torch.Tensor, out: torch.Tensor, places: torch.Tensor | None = None) -> None:
    """``out[places[i]] = x[i]``, or ``out[i] = x[i]``.

    Args:
        x, out: of one dtype, ``[n, ...]`` and ``[m, ...]``; see :func:`has_rows`.
        places: int64 ``[n]``, contiguous, each a row of ``out``.
    """
    parts = 1 if x[0].is_contiguous() and out[0].is_contiguous() else x.shape[1]
    count, nbytes = x.shape[0], x[0].nbytes // parts
    at_once = max(1, _TILE_BYTES // x[0].nbytes)
    step = next(step for step in (64, 16, 4, 2, 1) if nbytes % step == 0)
    # In bytes: an address, from row to row, and from part to part of a row.
    given: list[tuple[int, int] | int] = []
    for t in (x, out):
        given += [(t.data_ptr(), t.stride(0) * t.itemsize)]
        given += [t.stride(min(1, parts - 1)) * t.itemsize]
    kernel = _copy_rows(step, places is not None)
    kernel.run(-(-count // at_once), *given, places, count, parts, nbytes, at_once)


def has_rows(x: torch.Tensor) -> bool:
    """Whether ``x [n, ...]`` is not empty, and each ``x[i]``, or each ``x[i, j]``, contiguous."""
    if x.dim() == 0 or x.numel() == 0:
        return False
    return x[0].is_contiguous() or (x.dim() > 2 and x[0, 0].is_contiguous())


@functools.cache
def _copy_rows(step: int, is_placed: bool) -> Kernel:
    def copy(
        tile: Value,
        x: Rows,
        x_part: Value,
        out: Rows,
        out_part: Value,
        places: Value,
        count: Value,
        parts: Value,
        nbytes: Value,
        at_once: Value,
    ) -> None:
        for i in tile_loop(tile, at_once, count):
            place = load(places + i) if is_placed else i
            for part in loop(0, parts):
                source, target = x[i] + part * x_part, out[place] + part * out_part
                for k in loop(0, nbytes, step):
                    store(target + k, load(source + k, step))

    return Kernel(
        f"copy_{step}{'_placed' if is_placed else ''}",
        copy,
        x=rows(I8),
        x_part=I64,
        out=rows(I8),
        out_part=I64,
        places=pointer(I64),
        count=I64,
        parts=I64,
        nbytes=I64,
        at_once=I64,
    )


def convert(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out[...] = x``, of another dtype: float32, bfloat16 or float16.

    Both are contiguous; see :func:`converts`.
    """
    count = x.numel()
    _convert(x.dtype, out.dtype).run(-(-count // _TILE_ELEMENTS), x, out, count)


def converts(x: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether :func:`convert` takes these."""
    has_dtypes = x.dtype in FLOATS and out.dtype in FLOATS
    are_whole = x.is_contiguous() and out.is_contiguous() and x.numel() % LANES == 0
    return has_dtypes and are_whole and x.shape == out.shape and x.numel() > 0


@functools.cache
def _convert(dtype: torch.dtype, out_dtype: torch.dtype) -> Kernel:
    def convert(tile: Value, x: Value, out: Value, count: Value) -> None:
        for i in tile_loop(tile, _TILE_ELEMENTS, count, LANES):
            store(out + i, load(x + i, LANES))

    name = f"convert_{dtype}_{out_dtype}"
    return Kernel(name, convert, x=pointer(dtype), out=pointer(out_dtype), count=I64)
