"""Functions of float32 vectors that machine code computes, and their way from and to memory."""

from __future__ import annotations

import torch
from llvmlite import ir

from ascend_gguf.codegen.vectors import F32, I64, STORED, Vector, intrinsic, restored, store, stored

# Of exp(r) - 1 - r - r^2 / 2, over r^3, for |r| <= ln(2) / 2, highest power first; from the Cephes
# library's expf, as are the two parts of ln(2).
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# exp is a normal number within these.
_LEAST, _MOST = -87.0, 88.0
# Of 2**r - 1, over r, for |r| <= 1/2, highest power first: the relative error is at most 2.9e-6.
_EXP2 = (0.00958285294, 0.0559064262, 0.240240991, 0.693124175)
# From here on the last place of a float32 is 1.
_WHOLE = 1.5 * 2.0**23


def load(
    builder: ir.IRBuilder, pointer: ir.Value, offset: int, dtype: torch.dtype, count: int
) -> Vector:
    """``count`` numbers of a dtype from ``offset`` elements behind a pointer on, as float32."""
    kind = STORED[dtype] if count == 1 else ir.VectorType(STORED[dtype], count)
    address = builder.bitcast(builder.gep(pointer, [I64(offset)]), kind.as_pointer())
    value = Vector(builder, builder.load(address, align=dtype.itemsize))
    return restored(value, dtype)


def save(
    builder: ir.IRBuilder, pointer: ir.Value, offset: int, value: Vector, dtype: torch.dtype
) -> None:
    """Write float32 numbers, rounded to a dtype, from ``offset`` elements behind a pointer on."""
    store(builder, pointer, offset, stored(value, dtype, usual=False))


def multiply_add(a: Vector, b: Vector, total: Vector) -> Vector:
    """``a b + total``, rounded once where the processor can."""
    kind = a.value.type
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    values = [vector.value for vector in (a, b, total)]
    return Vector(a.builder, intrinsic(a.builder, f"llvm.fmuladd.{suffix}", kind, *values))


def maximum(a: Vector, b: Vector) -> Vector:
    """The greater of each two; what ``a`` has where ``b`` is NaN."""
    return a.is_less_than(b).chosen(b, a)


def total(value: Vector) -> Vector:
    """The sum of a vector's numbers, halves first."""
    while len(value) > 1:
        half = len(value) // 2
        value = value[:half] + value[half:] if half > 1 else value[0] + value[1]
    return value


def largest(value: Vector) -> Vector:
    """The greatest of a vector's numbers."""
    while len(value) > 1:
        half = len(value) // 2
        sides = (value[:half], value[half:]) if half > 1 else (value[0], value[1])
        value = maximum(*sides)
    return value


def exponential(x: Vector) -> Vector:
    """``exp(x)``, within 2 units in the last place; the least normal numbers where it is less."""
    x = maximum(x, x.filled(_LEAST))
    x = x.is_less_than(x.filled(_MOST)).chosen(x, x.filled(_MOST))
    shifted = multiply_add(x, x.filled(1.4426950408889634), x.filled(_WHOLE))
    whole = shifted - _WHOLE
    r = multiply_add(whole, x.filled(-_LN2_HIGH), x)
    r = multiply_add(whole, x.filled(-_LN2_LOW), r)
    series = r.filled(_EXP[0])
    for coefficient in (*_EXP[1:], 0.5):
        series = multiply_add(series, r, r.filled(coefficient))
    result = multiply_add(series, r * r, r + 1.0)
    return result * ((shifted.as_bits() << 23) + 0x3F800000).as_floats()


def power_of_two(x: Vector) -> Vector:
    """``2**x`` for ``x`` up to 0, to 18 bits; 0 where it is less than the least normal numbers."""
    # At the bound no bit is left: the exponent is 0, and 2**r is 1.
    shifted = maximum(x, x.filled(-127.0))
    whole = shifted + _WHOLE
    r = shifted - (whole - _WHOLE)
    series = r.filled(_EXP2[0])
    for coefficient in (*_EXP2[1:], 1.0):
        series = multiply_add(series, r, r.filled(coefficient))
    return (series.as_bits() + (whole.as_bits() << 23)).as_floats()


def constant(builder: ir.IRBuilder, number: float, count: int) -> Vector:
    """``count`` times a number."""
    kind = ir.VectorType(F32, count)
    return Vector(builder, ir.Constant(kind, [ir.Constant(F32, number)] * count))
