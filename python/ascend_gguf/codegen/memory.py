"""Loads and stores, and the rounding of float32 to what memory holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import ascend_gguf.codegen.processor as processor
from ascend_gguf.codegen.backend import backend
from ascend_gguf.codegen.kinds import BF16, F16, F32, I8, I16, I32, Kind, pointer
from ascend_gguf.codegen.value import Value, whole

_CACHE_LINE = 64


@dataclass(frozen=True)
class Rows:
    """Rows of memory, evenly spaced.

    Attributes:
        start: the address of the first.
        stride: elements from one to the next.
    """

    start: Value
    stride: Value

    def __getitem__(self, i: Value | int) -> Value:
        """The address of a row."""
        return self.start + self.stride * i


def load(address: Value, count: int = 1, kind: Kind | None = None) -> Value:
    """``count`` elements; float16 and bfloat16 as float32.

    Args:
        kind: of the elements; by default those of the address, whose alignment is assumed.
    """
    element = address.kind.element
    assert element is not None
    kind = kind or element
    raw = backend().load(address.raw, kind.stored, count, element.nbytes)
    return widened(Value(raw, kind.stored, count), kind)


def store(address: Value, value: Value, *, normal: bool = False) -> None:
    """Write a value.  Float32 is rounded to the elements of the address: see :func:`rounded`."""
    element = address.kind.element
    assert element is not None
    if value.kind is F32:
        value = rounded(value, element, normal)
    backend().store(address.raw, value.raw, value.kind, element.nbytes)


def prefetch(address: Value, nbytes: int, level: int = 1) -> None:
    """Prefetch bytes that are needed soon; the address need not be valid.

    Args:
        level: of the cache to bring them to.
    """
    start = address.cast(I8)
    for offset in range(0, nbytes, _CACHE_LINE):
        backend().prefetch((start + offset).raw, level)


def table(name: str, content: np.ndarray) -> Value:
    """The address of a constant table of bytes, embedded in the kernel under a name."""
    return Value(backend().table(name, content.tobytes()), pointer(I8))


def local(element: Kind, count: int | Value) -> Value:
    """Memory of the thread for ``count`` elements, aligned to 64 bytes, not initialized.

    Args:
        count: a Python number; for bytes also a parameter of the kernel.
    """
    nbytes = whole(count if element is I8 or isinstance(count, Value) else count * element.nbytes)
    return Value(backend().local(nbytes.raw), pointer(I8)).cast(element)


def rounded(value: Value, kind: Kind, normal: bool = False) -> Value:
    """Float32 rounded to nearest even, as memory of a kind holds it: 16-bit floats as their bits.

    Args:
        normal: no value is subnormal, and a NaN is the canonical one.  The instruction that rounds
            to bfloat16 takes subnormals for 0, and without it rounding would turn a NaN with all
            bits set into 0.
    """
    if kind is F16:
        return _half_bits(value)
    return _bfloat_bits(value, normal) if kind is BF16 else value


def widened(bits: Value, kind: Kind) -> Value:
    """The float32 of what :func:`rounded` gave; whole numbers as they are."""
    if kind is F16:
        return _floats_of_halves(bits)
    return (bits.zext(I32) << 16).bitcast(F32) if kind is BF16 else bits


def canonical_half(bits: Value) -> Value:
    """The bits of a float16, every NaN replaced by the canonical one."""
    return (bits & 0x7FFF).below(0x7C01).select(bits, 0x7E00)


def _floats_of_halves(bits: Value) -> Value:
    if processor.HALF_INSTRUCTIONS:
        return bits.bitcast(F16).convert(F32)
    word = bits.zext(I32)
    size, sign = word & 0x7FFF, (word & 0x8000) << 16
    # The exponents' biases are 112 apart; again for infinity and NaN.
    once, twice = (size << 13) + (112 << 23), (size << 13) + (224 << 23)
    subnormal = (size.to_float() * 2.0**-24).bitcast(I32)
    result = size.below(0x0400).select(subnormal, size.below(0x7C00).select(once, twice))
    return (result | sign).bitcast(F32)


def _half_bits(value: Value) -> Value:
    if processor.HALF_INSTRUCTIONS:
        return value.convert(F16).bitcast(I16)
    bits = value.bitcast(I32)
    size, sign = bits & 0x7FFFFFFF, bits >> 16 & 0x8000
    odd = size >> 13 & 1
    normal = size - (112 << 23) + 0xFFF + odd >> 13  # the too large carry over into infinity
    # Next to 0.5 the last place of a float32 is a float16's smallest number.
    subnormal = (size.bitcast(F32) + 0.5).bitcast(I32) - 0x3F000000
    result = size.below(0x38800000).select(subnormal, normal)
    special = size.below(0x7F800001).select(size.filled(0x7C00), 0x7E00)
    result = size.below(0x47800000).select(result, special)
    return (result | sign).trunc(I16)


def _bfloat_bits(value: Value, normal: bool) -> Value:
    if normal and processor.BFLOAT_INSTRUCTIONS:
        return value.convert(BF16).bitcast(I16)
    bits = value.bitcast(I32)
    result = bits + 0x7FFF + (bits >> 16 & 1) >> 16
    if not normal:
        is_number = (bits & 0x7FFFFFFF).below(0x7F800001)
        result = is_number.select(result, bits >> 16 | 0x40)
    return result.trunc(I16)
