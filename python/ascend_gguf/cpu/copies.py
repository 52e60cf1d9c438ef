"""Rows of memory copied on the CPU, to other places or to another dtype: one call each."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch
from llvmlite import ir

from ascend_gguf.codegen.control import minimum, repeat
from ascend_gguf.codegen.floats import load, save
from ascend_gguf.codegen.program import Program, pointer
from ascend_gguf.codegen.vectors import I8, I64, LANES, STORED

# Bytes, and numbers, that are worth a thread's while.
_TILE_BYTES, _TILE_NUMBERS = 1 << 16, 1 << 15


def copy_rows(x: torch.Tensor, out: torch.Tensor, places: torch.Tensor | None = None) -> None:
    """``out[places[i]] = x[i]``, or ``out[i] = x[i]``.

    Args:
        x, out: of one dtype, ``[n, ...]`` and ``[m, ...]``; see :func:`has_rows`.
        places: int64 ``[n]``, contiguous, each a row of ``out``.
    """
    count, nbytes = x.shape[0], x[0].nbytes
    rows = max(1, _TILE_BYTES // nbytes)
    step = next(step for step in (64, 16, 4, 2, 1) if nbytes % step == 0)
    _copy_rows(step, places is not None).run(
        -(-count // rows),
        x.data_ptr(),
        x.stride(0) * x.itemsize,
        out.data_ptr(),
        out.stride(0) * out.itemsize,
        0 if places is None else places.data_ptr(),
        count,
        nbytes,
        rows,
    )


def has_rows(x: torch.Tensor) -> bool:
    """Whether there are numbers in ``x [n, ...]``, and ``x[i]`` is contiguous."""
    return x.dim() > 0 and x.numel() > 0 and x[0].is_contiguous()


@functools.cache
def _copy_rows(step: int, is_placed: bool) -> Program:
    kind = I8 if step == 1 else ir.VectorType(I8, step)

    def write(builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace) -> None:
        def row(i: ir.Value) -> None:
            place = builder.load(pointer(builder, given.places, I64, i)) if is_placed else i
            source = pointer(builder, given.x, I8, builder.mul(i, given.x_stride))
            target = pointer(builder, given.out, I8, builder.mul(place, given.out_stride))

            def part(k: ir.Value) -> None:
                source_part, target_part = (
                    builder.bitcast(builder.gep(p, [k]), kind.as_pointer())
                    for p in (source, target)
                )
                builder.store(builder.load(source_part, align=1), target_part, align=1)

            repeat(builder, I64(0), given.nbytes, step, part)

        first = builder.mul(tile, given.step)
        stop = minimum(builder, builder.add(first, given.step), given.rows)
        repeat(builder, first, stop, 1, row)

    return Program("x x_stride out out_stride places rows nbytes step", write)


def convert(x: torch.Tensor, out: torch.Tensor) -> None:
    """``out[...] = x``, of another dtype: float32, bfloat16 or float16.

    Both are contiguous; see :func:`converts`.
    """
    _convert(x.dtype, out.dtype).run(
        -(-x.numel() // _TILE_NUMBERS), x.data_ptr(), out.data_ptr(), x.numel()
    )


def converts(x: torch.Tensor, out: torch.Tensor) -> bool:
    """Whether :func:`convert` takes these."""
    has_dtypes = x.dtype in STORED and out.dtype in STORED
    are_whole = x.is_contiguous() and out.is_contiguous() and x.numel() % LANES == 0
    return has_dtypes and are_whole and x.shape == out.shape and x.numel() > 0


@functools.cache
def _convert(dtype: torch.dtype, out_dtype: torch.dtype) -> Program:
    def write(builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace) -> None:
        def part(i: ir.Value) -> None:
            source = pointer(builder, given.x, STORED[dtype], i)
            target = pointer(builder, given.out, STORED[out_dtype], i)
            save(builder, target, 0, load(builder, source, 0, dtype, LANES), out_dtype)

        first = builder.mul(tile, I64(_TILE_NUMBERS))
        stop = minimum(builder, builder.add(first, I64(_TILE_NUMBERS)), given.count)
        repeat(builder, first, stop, LANES, part)

    return Program("x out count", write)
