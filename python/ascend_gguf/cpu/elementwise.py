"""Sums and multiples of tensors on the CPU, rounded as torch does: once, from float32."""

from __future__ import annotations

import functools

import torch

from ascend_gguf.codegen import (
    F32,
    FLOATS,
    I64,
    LANES,
    Kernel,
    Value,
    load,
    pointer,
    store,
    tile_loop,
)

# Elements that are worth a thread's while.
_TILE = 1 << 14


def takes(*tensors: torch.Tensor) -> bool:
    """Whether :func:`add` and :func:`scale` take these: contiguous, of one shape and dtype."""
    first = tensors[0]
    return (
        first.dtype in FLOATS
        and first.numel() > 0
        and first.numel() % LANES == 0
        and all(
            t.is_contiguous() and t.shape == first.shape and t.dtype == first.dtype for t in tensors
        )
    )


def add(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """``out[...] = a + b``."""
    _run(a, b, 1.0, out)


def scale(x: torch.Tensor, factor: float, out: torch.Tensor) -> None:
    """``out[...] = x * factor``."""
    _run(x, None, factor, out)


def _run(a: torch.Tensor, b: torch.Tensor | None, factor: float, out: torch.Tensor) -> None:
    count = a.numel()
    _kernel(a.dtype, b is not None).run(-(-count // _TILE), a, b, factor, out, count)


@functools.cache
def _kernel(dtype: torch.dtype, adds: bool) -> Kernel:
    def compute(tile: Value, a: Value, b: Value, factor: Value, out: Value, count: Value) -> None:
        for i in tile_loop(tile, _TILE, count, LANES):
            x = load(a + i, LANES)
            store(out + i, x + load(b + i, LANES) if adds else x * factor.splat(LANES))

    element = pointer(dtype)
    name = f"{'add' if adds else 'scale'}_{dtype}"
    return Kernel(name, compute, a=element, b=element, factor=F32, out=element, count=I64)
