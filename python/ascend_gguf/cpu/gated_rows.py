"""Rows that a gate multiplies, on the CPU: one call each; arithmetic is float32.

Tensors are ``[rows, n]`` of float32, bfloat16 or float16, rows evenly spaced.
"""

from __future__ import annotations

import functools

import torch

from ascend_gguf.codegen import (
    F32,
    I64,
    LANES,
    Kernel,
    Rows,
    Value,
    fold,
    load,
    loop,
    multiply_add,
    pointer,
    rows,
    sigmoid,
    splat,
    sqrt,
    store,
    sum_of,
    tile_loop,
)
from ascend_gguf.cpu.row_ops import as_rows, lanes_of

# Elements that are worth a thread's while.
_TILE = 1 << 13


def gated_rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    gate: torch.Tensor,
    eps: float,
    *,
    groups: int = 1,
    gate_first: bool = False,
    activation: str = "silu",
) -> torch.Tensor:
    """Each row over the root of its mean square, times ``weight``, times ``silu(gate)``.

    Args:
        x, gate: ``[rows, n]``.
        weight: ``[n]``, contiguous.
        groups: parts of a row that are normed by themselves, each ``n / groups`` neighbours.
        gate_first: the norm is that of ``x silu(gate)``.
        activation: ``sigmoid`` for that function of the gate in place of ``silu``.

    Returns:
        A new contiguous tensor of the dtype of ``x``.
    """
    (count, n), x, gate = x.shape, as_rows(x), as_rows(gate)
    out = torch.empty(count, n, dtype=x.dtype)
    dtypes, count = (x.dtype, gate.dtype, weight.dtype), count * groups
    kernel = _norm(n, groups, dtypes, gate_first, activation)
    kernel.run(-(-count // _at_once(n // groups)), x, gate, weight, out, eps, count)
    return out


def _at_once(n: int) -> int:
    """Rows of ``n`` elements that a thread takes at a time."""
    return max(1, _TILE // n)


@functools.cache
def _norm(
    n: int, groups: int, dtypes: tuple[torch.dtype, ...], gate_first: bool, activation: str
) -> Kernel:
    size = n // groups
    act = {"silu": _silu, "sigmoid": sigmoid}[activation]
    width = lanes_of(size, 2 * LANES)

    def norm(
        tile: Value, x: Rows, gate: Rows, weight: Value, out: Value, eps: Value, count: Value
    ) -> None:
        for i in tile_loop(tile, _at_once(size), count):
            row, part = i // groups, i % groups * size
            source, gates = x[row] + part, gate[row] + part

            def element(j: Value, source: Value = source, gates: Value = gates) -> Value:
                value = load(source + j, width)
                return value * act(load(gates + j, width)) if gate_first else value

            def square(j: Value, totals: list[Value]) -> list[Value]:
                value = element(j)
                return [multiply_add(value, value, totals[0])]

            (squares,) = fold(0, size, width, [splat(0.0, width)], square)
            scale = (1.0 / sqrt(sum_of(squares) * (1 / size) + eps)).splat(width)
            for j in loop(0, size, width):
                value = element(j) * scale * load(weight + part + j, width)
                if not gate_first:
                    value = value * act(load(gates + j, width))
                store(out + (i * size + j), value)

    dtype, gate_dtype, weight_dtype = dtypes
    return Kernel(
        f"gated_norm_{n}_{groups}_{dtype}",
        norm,
        x=rows(dtype),
        gate=rows(gate_dtype),
        weight=pointer(weight_dtype),
        out=pointer(dtype),
        eps=F32,
        count=I64,
    )


def multiply_by_sigmoid(x: torch.Tensor, gate: torch.Tensor) -> None:
    """``x *= sigmoid(gate)``, in place.

    Args:
        x: ``[rows, n]``, a row's elements neighbours.
        gate: with as many elements.
    """
    assert x.stride(1) == 1
    (count, n), gate = x.shape, as_rows(gate.reshape(x.shape))
    _multiply(n, x.dtype, gate.dtype).run(-(-count // _at_once(n)), x, gate, count)


@functools.cache
def _multiply(n: int, dtype: torch.dtype, gate_dtype: torch.dtype) -> Kernel:
    width = lanes_of(n)

    def multiply(tile: Value, x: Rows, gate: Rows, count: Value) -> None:
        for i in tile_loop(tile, _at_once(n), count):
            for j in loop(0, n, width):
                target = x[i] + j
                store(target, load(target, width) * sigmoid(load(gate[i] + j, width)))

    name = f"gated_sigmoid_{n}_{dtype}"
    return Kernel(name, multiply, x=rows(dtype), gate=rows(gate_dtype), count=I64)


def _silu(x: Value) -> Value:
    return x * sigmoid(x)
