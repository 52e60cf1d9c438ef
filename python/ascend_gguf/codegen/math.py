"""Functions of float32: sums, maxima, exponentials, products added up."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable

from ascend_gguf.codegen.backend import backend
from ascend_gguf.codegen.kinds import BF16, F32, I32, LANES
from ascend_gguf.codegen.value import Value

# Of exp(r) - 1 - r - r^2 / 2, over r^3, for |r| <= ln(2) / 2, highest power first; from the Cephes
# library's expf, as are the two parts of ln(2).
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1)
_LN2_HIGH, _LN2_LOW = 0.693359375, -2.12194440e-4
# exp is a normal number within these.
_LEAST, _MOST = -87.0, 88.0
# Of 2**r - 1, over r, for |r| <= 1/2, highest power first: the relative error is at most 2.9e-6.
_EXP2 = (0.00958285294, 0.0559064262, 0.240240991, 0.693124175)
# The last power of the inverse hyperbolic tangent's series that counts, up to 1/3.
_SOFTPLUS_TERMS = 15
# From here on the last place of a float32 is 1.
WHOLE = 1.5 * 2.0**23


def multiply_add(a: Value, b: Value, total: Value) -> Value:
    """``a b + total``, rounded once where the processor can."""
    suffix = f"v{a.count}f32" if a.count > 1 else "f32"
    raw = backend().call(f"llvm.fmuladd.{suffix}", F32, a.count, a.raw, b.raw, total.raw)
    return Value(raw, F32, a.count)


def add_pairs(a: Value, b: Value, total: Value) -> Value:
    """To each lane of ``total`` two products of bfloat16; the instruction of AVX-512.

    Args:
        a, b: 512 bits of any kind: 32 bfloat16.
    """
    name = "llvm.x86.avx512bf16.dpbf16ps.512"
    raw = backend().call(name, F32, LANES, total.raw, *(v.bitcast(BF16).raw for v in (a, b)))
    return Value(raw, F32, LANES)


def sqrt(x: Value) -> Value:
    """Of one number."""
    return Value(backend().call("llvm.sqrt.f32", F32, 1, x.raw), F32)


def maximum(a: Value, b: Value | float) -> Value:
    """The greater of each two; what ``a`` has where one is NaN."""
    b = a.like(b)
    return (a < b).select(b, a)


def halved(value: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """One lane of all: halves are combined until one is left."""
    while len(value) > 1:
        half = len(value) // 2
        value = combine(value[:half], value[half:])
    return value


def sum_of(value: Value) -> Value:
    """The sum of the lanes, halves first."""
    return halved(value, operator.add)


def max_of(value: Value) -> Value:
    """The greatest of the lanes."""
    return halved(value, maximum)


def _series(x: Value, coefficients: Iterable[float]) -> Value:
    """A polynomial, its highest power first."""
    first, *others = (x.filled(number) for number in coefficients)
    return functools.reduce(lambda sum_, number: multiply_add(sum_, x, number), others, first)


def exp(x: Value) -> Value:
    """``exp(x)``, within 2 units in the last place; the least normal number where it is less."""
    x = maximum(x, _LEAST)
    x = (x < _MOST).select(x, _MOST)
    shifted = multiply_add(x, x.filled(1.4426950408889634), x.filled(WHOLE))
    exponent = shifted - WHOLE
    r = multiply_add(exponent, x.filled(-_LN2_HIGH), x)
    r = multiply_add(exponent, x.filled(-_LN2_LOW), r)
    result = multiply_add(_series(r, (*_EXP, 0.5)), r * r, r + 1.0)
    return result * ((shifted.bitcast(I32) << 23) + 0x3F800000).bitcast(F32)


def sigmoid(x: Value) -> Value:
    """``1 / (1 + exp(-x))``."""
    return 1.0 / (exp(-x) + 1.0)


def softplus(x: Value) -> Value:
    """``log(1 + exp(x))``, within 3 units in the last place."""
    small = exp(-maximum(x, -x))
    # log(1 + y) is twice the inverse hyperbolic tangent of this, which is at most 1/3.
    part = small / (small + 2.0)
    series = _series(part * part, (1 / power for power in range(_SOFTPLUS_TERMS, 0, -2)))
    return multiply_add(part * 2.0, series, maximum(x, 0.0))


def exp2(x: Value) -> Value:
    """``2**x`` for ``x`` up to 0, to 18 bits; 0 where it is less than the least normal number."""
    # At the bound no bit is left: the exponent is 0, and 2**r is 1.
    shifted = maximum(x, -127.0)
    exponent = shifted + WHOLE
    r = shifted - (exponent - WHOLE)
    series = _series(r, (*_EXP2, 1.0))
    return (series.bitcast(I32) + (exponent.bitcast(I32) << 23)).bitcast(F32)
