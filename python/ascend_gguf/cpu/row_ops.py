"""Operations on rows between a model's matrices, on the CPU: one call each.

Tensors are float32, bfloat16 or float16; arithmetic is float32, and rounded once at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from ascend_gguf.codegen import (
    F32,
    I32,
    I64,
    LANES,
    Kernel,
    Rows,
    Value,
    exp,
    fold,
    load,
    loop,
    multiply_add,
    pointer,
    rows,
    splat,
    sqrt,
    store,
    sum_of,
    tile_loop,
)

# Of vectors that elements are done in.
_WIDTHS = tuple(1 << i for i in reversed(range((4 * LANES).bit_length())))
# Elements that are worth a thread's while.
_TILE = 1 << 14
# Columns of a sum of rows, the same.
_SUMMED = 512
# Of GELU's approximation: Hendrycks and Gimpel, arXiv 1606.08415.
_GELU_SCALE, _GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


def lanes_of(n: int, most: int = LANES) -> int:
    """The widest vectors, of up to ``most`` elements, that ``n`` elements are a number of."""
    return next(width for width in _WIDTHS if width <= most and n % width == 0)


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    residual: torch.Tensor | None = None,
    *,
    plus_one: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Each row times ``weight`` over the root of its mean square.

    Args:
        x: ``[..., n]``.
        weight: ``[n]``, of the dtype of ``x`` or float32.
        residual: of the shape and dtype of ``x``, added to it first.
        plus_one: multiply by one more than ``weight``, as Gemma does.

    Returns:
        A new tensor; with ``residual`` also a new one with the sum.
    """
    n, source = x.shape[-1], as_rows(x)
    out = torch.empty(x.shape, dtype=x.dtype)
    count = source.shape[0]
    tiles = -(-count // _at_once(n))
    kernel = _rms_norm(n, x.dtype, weight.dtype, residual is not None, plus_one)
    if residual is None:
        kernel.run(tiles, source, weight, out, eps, None, None, count)
        return out
    sums = torch.empty(x.shape, dtype=x.dtype)
    kernel.run(tiles, source, weight, out, eps, as_rows(residual), sums, count)
    return out, sums


@functools.cache
def _rms_norm(
    n: int, dtype: torch.dtype, weight_dtype: torch.dtype, adds: bool, plus_one: bool
) -> Kernel:
    width = lanes_of(n, 4 * LANES)  # enough that additions need not wait

    def norm_row(
        x: Value, weight: Value, residual: Value, sums: Value, out: Value, eps: Value
    ) -> None:
        def element(j: Value) -> Value:
            value = load(x + j, width)
            return value + load(residual + j, width) if adds else value

        def square(j: Value, totals: list[Value]) -> list[Value]:
            value = element(j)
            if adds:
                store(sums + j, value)
            return [multiply_add(value, value, totals[0])]

        (squares,) = fold(0, n, width, [splat(0.0, width)], square)
        scale = (1.0 / sqrt(sum_of(squares) * (1 / n) + eps)).splat(width)
        for j in loop(0, n, width):
            factors = load(weight + j, width)
            factors = factors + 1.0 if plus_one else factors
            store(out + j, element(j) * scale * factors)

    def norm(
        tile: Value,
        x: Rows,
        weight: Value,
        out: Value,
        eps: Value,
        residual: Rows,
        sums: Value,
        count: Value,
    ) -> None:
        for i in tile_loop(tile, _at_once(n), count):
            norm_row(x[i], weight, residual[i], sums + i * n, out + i * n, eps)

    return Kernel(
        f"rms_norm_{n}_{dtype}",
        norm,
        x=rows(dtype),
        weight=pointer(weight_dtype),
        out=pointer(dtype),
        eps=F32,
        residual=rows(dtype),
        sums=pointer(dtype),
        count=I64,
    )


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of ``[..., 2 * n]`` with the gate first: ``[..., n]``.

    ``n`` is a multiple of 16, and rows are evenly spaced.
    """
    return _gated(gate_up, _itself)


def gelu_tanh_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """As :func:`silu_and_mul`, with the approximation of GELU by a hyperbolic tangent."""
    return _gated(gate_up, _twice_gelu_argument)


def _itself(x: Value) -> Value:
    return x


def _twice_gelu_argument(x: Value) -> Value:
    """``2 z``: GELU is ``x (1 + tanh(z)) / 2``, which is ``x`` times the sigmoid of ``2 z``."""
    return x * (x * x * (2 * _GELU_SCALE * _GELU_CUBE) + 2 * _GELU_SCALE)


def _gated(gate_up: torch.Tensor, argument: Callable[[Value], Value]) -> torch.Tensor:
    """``gate * sigmoid(argument(gate)) * up``."""
    source, n = as_rows(gate_up), gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], n), dtype=gate_up.dtype)
    count = source.shape[0]
    _gated_rows(n, gate_up.dtype, argument).run(-(-count // _at_once(2 * n)), source, out, count)
    return out


@functools.cache
def _gated_rows(n: int, dtype: torch.dtype, argument: Callable[[Value], Value]) -> Kernel:
    def gated(tile: Value, gate_up: Rows, out: Value, count: Value) -> None:
        for i in tile_loop(tile, _at_once(2 * n), count):
            gate, target = gate_up[i], out + i * n
            for j in loop(0, n, LANES):
                x, up = load(gate + j, LANES), load(gate + j + n, LANES)
                store(target + j, x * up / (exp(-argument(x)) + 1.0))

    name = f"gated_{n}_{dtype}"
    return Kernel(name, gated, gate_up=rows(dtype), out=pointer(dtype), count=I64)


def sum_chosen(
    x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, count: int, dtype: torch.dtype
) -> torch.Tensor:
    """The weighted sum of the rows of each token, but for those of no expert.

    Args:
        x: float32 ``[tokens * k, n]``, contiguous; ``n`` a multiple of 16.
        weights: float32 ``[tokens, k]``, contiguous.
        ids: int32 ``[tokens * k]``: the expert that each row is of.
        count: how many experts there are; any other id is of none.

    Returns:
        ``[tokens, n]`` of ``dtype``.
    """
    (tokens, k), n = weights.shape, x.shape[-1]
    out = torch.empty(tokens, n, dtype=dtype)
    _sum_chosen(n, dtype).run(tokens * -(-n // _SUMMED), x, weights, ids, out, k, count)
    return out


@functools.cache
def _sum_chosen(n: int, dtype: torch.dtype) -> Kernel:
    tiles = -(-n // _SUMMED)

    def add(
        tile: Value, x: Value, weights: Value, ids: Value, out: Value, k: Value, count: Value
    ) -> None:
        token = tile // tiles
        for i in tile_loop(tile % tiles, _SUMMED, n, LANES):

            def row(j: Value, totals: list[Value], i: Value = i) -> list[Value]:
                values = load(x + (j * n + i), LANES)
                is_held = load(ids + j).zext(I64).below(count).splat(LANES)
                weight = load(weights + j).splat(LANES)
                return [is_held.select(multiply_add(values, weight, totals[0]), totals[0])]

            start = token * k
            (total,) = fold(start, start + k, 1, [splat(0.0, LANES)], row)
            store(out + (token * n + i), total)

    return Kernel(
        f"sum_chosen_{n}_{dtype}",
        add,
        x=pointer(F32),
        weights=pointer(F32),
        ids=pointer(I32),
        out=pointer(dtype),
        k=I64,
        count=I64,
    )


def rotate(
    x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, *, interleaved: bool
) -> torch.Tensor:
    """Rotary position embedding.

    Args:
        x: ``[tokens, heads, head_size]``, each contiguous, heads too, tokens evenly spaced.
        positions: int64 ``[tokens]``, contiguous, each a row of ``cos_sin``.
        cos_sin: ``[positions, rotary]``, contiguous: cosines of the angles, then sines.
            ``rotary`` is a multiple of 32; what a head has after it stays as it is.
        interleaved: pairs are next to each other, not half of ``rotary`` apart.

    Returns:
        A new contiguous tensor.
    """
    cos, sin = cos_sin.chunk(2, -1)
    return _rotated(x, positions, cos, sin, interleaved)


def rotate_by(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding by given angles, of pairs that are half a head apart.

    Args:
        x: as of :func:`rotate`; ``head_size`` is a multiple of 32.
        cos, sin: ``[tokens, head_size / 2]``, of one dtype, rows as far apart as each other's.

    Returns:
        A new contiguous tensor.
    """
    return _rotated(x, None, cos, sin, interleaved=False)


def _rotated(
    x: torch.Tensor,
    positions: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    interleaved: bool,
) -> torch.Tensor:
    tokens, heads, head_size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    at_once = _at_once(heads * head_size)
    rotary, by_position = 2 * cos.shape[1], positions is not None
    kernel = _rotate(head_size, rotary, x.dtype, cos.dtype, interleaved, by_position)
    kernel.run(-(-tokens // at_once), x, positions, cos, sin, out, heads, tokens, at_once)
    return out


@functools.cache
def _rotate(
    head_size: int,
    rotary: int,
    dtype: torch.dtype,
    angle_dtype: torch.dtype,
    interleaved: bool,
    by_position: bool,
) -> Kernel:
    half = rotary // 2
    # Of interleaved pairs: the first of each, then the second, back between each other.
    order = [k // 2 + k % 2 * LANES for k in range(2 * LANES)]

    def rotate_head(source: Value, target: Value, angles: list[list[Value]]) -> None:
        for j, (cos, sin) in zip(range(0, half, LANES), angles, strict=True):
            if interleaved:
                both = load(source + 2 * j, 2 * LANES)
                first, second = both[0::2], both[1::2]
            else:
                first, second = load(source + j, LANES), load(source + half + j, LANES)
            first, second = first * cos - second * sin, second * cos + first * sin
            if interleaved:
                store(target + 2 * j, first.concat(second).take(order))
            else:
                store(target + j, first)
                store(target + half + j, second)
        for j in range(rotary, head_size, LANES):
            store(target + j, load(source + j, min(LANES, head_size - j)))

    def rotate(
        tile: Value,
        x: Rows,
        positions: Value,
        cos: Rows,
        sin: Rows,
        out: Rows,
        heads: Value,
        count: Value,
        at_once: Value,
    ) -> None:
        for i in tile_loop(tile, at_once, count):
            place = load(positions + i) if by_position else i
            angles = [
                [load(table[place] + j, LANES) for table in (cos, sin)]
                for j in range(0, half, LANES)
            ]
            for h in loop(0, heads):
                rotate_head(x[i] + h * head_size, out[i] + h * head_size, angles)

    return Kernel(
        f"rotate_{head_size}_{rotary}_{dtype}",
        rotate,
        x=rows(dtype),
        positions=pointer(I64),
        cos=rows(angle_dtype),
        sin=rows(angle_dtype),
        out=rows(dtype),
        heads=I64,
        count=I64,
        at_once=I64,
    )


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """``[rows, n]``, without a copy where rows are evenly spaced."""
    found = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return found if found.stride(1) == 1 else found.contiguous()


def _at_once(n: int) -> int:
    """Rows of ``n`` elements that a thread takes at a time."""
    return max(1, _TILE // n)
