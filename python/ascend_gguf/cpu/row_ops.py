"""Operations on rows of numbers between a model's matrices, on the CPU: one call each.

Numbers are float32, bfloat16 or float16; arithmetic is float32, and rounded once at the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace

import torch
from llvmlite import ir

from ascend_gguf.codegen.control import fold, minimum, repeat
from ascend_gguf.codegen.floats import constant, exponential, load, multiply_add, save, total
from ascend_gguf.codegen.program import Program, float_bits, float_of, pointer
from ascend_gguf.codegen.vectors import F32, I64, LANES, STORED, Vector

# Numbers that are worth a thread's while.
_TILE = 1 << 14
# Of GELU's approximation: Hendrycks and Gimpel, arXiv 1606.08415.
_GELU_SCALE, _GELU_CUBE = math.sqrt(2 / math.pi), 0.044715


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
        x: ``[..., n]``; ``n`` a multiple of 16.
        weight: ``[n]``, of the dtype of ``x`` or float32.
        residual: of the shape and dtype of ``x``, added to it first.
        plus_one: multiply by one more than ``weight``, as Gemma does.

    Returns:
        A new tensor; with ``residual`` also a new one with the sum.
    """
    n, rows = x.shape[-1], _rows(x)
    out = torch.empty(x.shape, dtype=x.dtype)
    step = max(1, _TILE // n)
    program = _rms_norm(n, x.dtype, weight.dtype, residual is not None, plus_one)
    count = rows.shape[0]
    numbers = (rows.data_ptr(), rows.stride(0), weight.data_ptr(), out.data_ptr(), count, step)
    if residual is None:
        program.run(-(-rows.shape[0] // step), *numbers, float_bits(eps), 0, 0, 0)
        return out
    added, sums = _rows(residual), torch.empty(x.shape, dtype=x.dtype)
    program.run(
        -(-rows.shape[0] // step),
        *numbers,
        float_bits(eps),
        added.data_ptr(),
        added.stride(0),
        sums.data_ptr(),
    )
    return out, sums


@functools.cache
def _rms_norm(
    n: int, dtype: torch.dtype, weight_dtype: torch.dtype, adds: bool, plus_one: bool
) -> Program:
    given = "x x_stride weight out rows step eps residual residual_stride sums"
    width = _width(n)

    def write(builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace) -> None:
        weight = pointer(builder, given.weight, STORED[weight_dtype])
        eps = Vector(builder, float_of(builder, given.eps))

        def row(i: ir.Value) -> None:
            def at(address: ir.Value, stride: ir.Value | int) -> ir.Value:
                stride = I64(stride) if isinstance(stride, int) else stride
                return pointer(builder, address, STORED[dtype], builder.mul(i, stride))

            x, out = at(given.x, given.x_stride), at(given.out, n)
            residual, sums = at(given.residual, given.residual_stride), at(given.sums, n)

            def value(j: ir.Value) -> Vector:
                value = load(builder, builder.gep(x, [j]), 0, dtype, width)
                if adds:
                    value = value + load(builder, builder.gep(residual, [j]), 0, dtype, width)
                return value

            def square(j: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
                numbers = value(j)
                if adds:
                    save(builder, builder.gep(sums, [j]), 0, numbers, dtype)
                return [multiply_add(numbers, numbers, Vector(builder, totals[0])).value]

            zero = constant(builder, 0.0, width).value
            (squares,) = fold(builder, I64(0), I64(n), width, [zero], square)
            mean = total(Vector(builder, squares)) * (1 / n) + eps
            root = builder.call(_sqrt(builder), [mean.value])
            scale = Vector(builder, builder.fdiv(F32(1.0), root)).repeated(width)

            def scaled(j: ir.Value) -> None:
                factors = load(builder, builder.gep(weight, [j]), 0, weight_dtype, width)
                factors = factors + 1.0 if plus_one else factors
                save(builder, builder.gep(out, [j]), 0, value(j) * scale * factors, dtype)

            repeat(builder, I64(0), I64(n), width, scaled)

        _each_row(builder, tile, given, row)

    return Program(given, write)


def silu_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of ``[..., 2 * n]`` with the gate first: ``[..., n]``.

    ``n`` is a multiple of 16, and rows are evenly spaced.
    """
    return _gated(gate_up, _itself)


def gelu_tanh_and_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """As :func:`silu_and_mul`, with the approximation of GELU by a hyperbolic tangent."""
    return _gated(gate_up, _twice_gelu_argument)


def _itself(x: Vector) -> Vector:
    return x


def _twice_gelu_argument(x: Vector) -> Vector:
    """``2 z``: GELU is ``x (1 + tanh(z)) / 2``, which is ``x`` times the sigmoid of ``2 z``."""
    return x * (x * x * (2 * _GELU_SCALE * _GELU_CUBE) + 2 * _GELU_SCALE)


def _gated(gate_up: torch.Tensor, argument: Callable[[Vector], Vector]) -> torch.Tensor:
    """``gate * sigmoid(argument(gate)) * up``."""
    rows, n = _rows(gate_up), gate_up.shape[-1] // 2
    out = torch.empty((*gate_up.shape[:-1], n), dtype=gate_up.dtype)
    step = max(1, _TILE // 2 // n)
    _gated_rows(n, gate_up.dtype, argument).run(
        -(-rows.shape[0] // step),
        rows.data_ptr(),
        rows.stride(0),
        out.data_ptr(),
        rows.shape[0],
        step,
    )
    return out


@functools.cache
def _gated_rows(n: int, dtype: torch.dtype, argument: Callable[[Vector], Vector]) -> Program:
    def write(builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace) -> None:
        def row(i: ir.Value) -> None:
            gate = pointer(builder, given.x, STORED[dtype], builder.mul(i, given.x_stride))
            out = pointer(builder, given.out, STORED[dtype], builder.mul(i, I64(n)))

            def part(j: ir.Value) -> None:
                x = load(builder, builder.gep(gate, [j]), 0, dtype, LANES)
                up = load(builder, builder.gep(gate, [j]), n, dtype, LANES)
                negative = Vector(builder, builder.fneg(argument(x).value))
                value = x * up / (exponential(negative) + 1.0)
                save(builder, builder.gep(out, [j]), 0, value, dtype)

            repeat(builder, I64(0), I64(n), LANES, part)

        _each_row(builder, tile, given, row)

    return Program("x x_stride out rows step", write)


def rotate(
    x: torch.Tensor, positions: torch.Tensor, cos_sin: torch.Tensor, *, adjacent: bool
) -> torch.Tensor:
    """Rotary position embedding.

    Args:
        x: ``[tokens, heads, head_size]``, heads and their numbers adjacent, tokens evenly spaced.
        positions: int64 ``[tokens]``, contiguous, each a row of ``cos_sin``.
        cos_sin: ``[positions, rotary]``, contiguous: cosines of the angles, then sines.
            ``rotary`` is a multiple of 32; numbers of a head after it stay as they are.
        adjacent: pairs are next to each other, not half of ``rotary`` apart.

    Returns:
        A new contiguous tensor.
    """
    cos, sin = cos_sin.chunk(2, -1)
    return _rotated(x, positions, cos, sin, adjacent)


def rotate_by(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding by given angles, of pairs that are half a head apart.

    Args:
        x: as of :func:`rotate`; ``head_size`` is a multiple of 32.
        cos, sin: ``[tokens, head_size / 2]``, of one dtype, rows as far apart as each other's.

    Returns:
        A new contiguous tensor.
    """
    return _rotated(x, None, cos, sin, adjacent=False)


def _rotated(
    x: torch.Tensor,
    positions: torch.Tensor | None,
    cos: torch.Tensor,
    sin: torch.Tensor,
    adjacent: bool,
) -> torch.Tensor:
    tokens, heads, head_size = x.shape
    out = torch.empty(x.shape, dtype=x.dtype)
    step = max(1, _TILE // (heads * head_size))
    rotary, by_position = 2 * cos.shape[1], positions is not None
    _rotate(head_size, rotary, x.dtype, cos.dtype, adjacent, by_position).run(
        -(-tokens // step),
        x.data_ptr(),
        x.stride(0),
        0 if positions is None else positions.data_ptr(),
        cos.data_ptr(),
        sin.data_ptr(),
        cos.stride(0),
        out.data_ptr(),
        heads,
        tokens,
        step,
    )
    return out


@functools.cache
def _rotate(
    head_size: int,
    rotary: int,
    dtype: torch.dtype,
    angle_dtype: torch.dtype,
    adjacent: bool,
    by_position: bool,
) -> Program:
    half = rotary // 2

    def write(builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace) -> None:
        def row(i: ir.Value) -> None:
            place = builder.load(pointer(builder, given.positions, I64, i)) if by_position else i
            place = builder.mul(place, given.angle_stride)
            angles = [
                pointer(builder, address, STORED[angle_dtype], place)
                for address in (given.cos, given.sin)
            ]
            x = pointer(builder, given.x, STORED[dtype], builder.mul(i, given.x_stride))
            width = builder.mul(given.heads, I64(head_size))
            out = pointer(builder, given.out, STORED[dtype], builder.mul(i, width))
            turns = [
                [load(builder, angle, j, angle_dtype, LANES) for angle in angles]
                for j in range(0, half, LANES)
            ]

            def head(h: ir.Value) -> None:
                place = builder.mul(h, I64(head_size))
                source, target = builder.gep(x, [place]), builder.gep(out, [place])
                for j, (cos, sin) in zip(range(0, half, LANES), turns, strict=True):
                    if adjacent:
                        both = load(builder, source, 2 * j, dtype, 2 * LANES)
                        first, second = both[0::2], both[1::2]
                    else:
                        first, second = (
                            load(builder, source, start + j, dtype, LANES) for start in (0, half)
                        )
                    first, second = first * cos - second * sin, second * cos + first * sin
                    if adjacent:
                        order = [k // 2 + k % 2 * LANES for k in range(2 * LANES)]
                        save(builder, target, 2 * j, first.then(second).take(order), dtype)
                    else:
                        save(builder, target, j, first, dtype)
                        save(builder, target, half + j, second, dtype)
                for j in range(rotary, head_size, LANES):
                    count = min(LANES, head_size - j)
                    save(builder, target, j, load(builder, source, j, dtype, count), dtype)

            repeat(builder, I64(0), given.heads, 1, head)

        _each_row(builder, tile, given, row)

    given = "x x_stride positions cos sin angle_stride out heads rows step"
    return Program(given, write)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """``[rows, n]``, without a copy where rows are evenly spaced."""
    rows = x if x.dim() == 2 else x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _width(n: int) -> int:
    """Numbers to do at once of a row of ``n``: enough that additions need not wait."""
    return next(width for width in (4 * LANES, 2 * LANES, LANES) if n % width == 0)


def _each_row(
    builder: ir.IRBuilder, tile: ir.Value, given: SimpleNamespace, row: Callable[[ir.Value], None]
) -> None:
    first = builder.mul(tile, given.step)
    stop = minimum(builder, builder.add(first, given.step), given.rows)
    repeat(builder, first, stop, 1, row)


def _sqrt(builder: ir.IRBuilder) -> ir.Function:
    name, module = "llvm.sqrt.f32", builder.module
    return module.globals.get(name) or ir.Function(module, ir.FunctionType(F32, [F32]), name)
