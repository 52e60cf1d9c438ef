"""The words decoders are written in: vectors of numbers, and how they become machine code.

A decoder is a Python function of a :class:`Bytes`, its block, and a :class:`~.target.Target`, which
takes what the block decodes to.  It is called once, to write down the instructions for any block: a
:class:`Vector` stands for a value that is not known yet, and each operation on one appends an
instruction of LLVM, whose vectors of any length fit every processor.  So nothing is left to a
compiler's guess of what to vectorise, and compiling takes milliseconds.

The arithmetic is float32 in the order of ggml's C code; nothing is fused or reordered, so that
every bit is the same.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from llvmlite import binding as llvm
from llvmlite import ir

I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F32 = ir.FloatType()

_CACHE_LINE = 64

#: Weights a vector holds, as a rule: 64 bytes of float32.
LANES = 16


@functools.cache
def host_features() -> dict[str, bool]:
    """What this processor can and cannot do, in LLVM's words; nothing where LLVM cannot tell."""
    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:
        return {}


#: Whether the processor converts float16 and bfloat16; elsewhere whole-number arithmetic does.
HALF_INSTRUCTIONS = platform.machine() in ("aarch64", "arm64") or host_features().get("f16c", False)
BFLOAT_INSTRUCTIONS = llvm.llvm_version_info[0] >= 20 and host_features().get("avx512bf16", False)


class _BFloat(ir.Type):
    """LLVM's bfloat, which llvmlite has no name for."""

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    __hash__ = object.__hash__


BFLOAT = _BFloat()


class Vector:
    """One or more whole numbers of some width, or float32, that the machine code will compute.

    ``+ - * /`` of floats, ``+ - * & | ^ << >>`` of whole numbers, modulo their width, ``>>``
    filling with zeros.  The other operand may be a Python number, one for each, or a vector of one
    for all to meet.

    Attributes:
        coded: how else to come by whole numbers that can have a few values only, where known.
        lane: of one number, the vector it is of and its place there, where known.
    """

    coded: Coded | None = None
    lane: tuple[Vector, int] | None = None

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.builder = builder
        self.value = value

    @property
    def _element(self) -> ir.Type:
        kind = self.value.type
        return kind.element if isinstance(kind, ir.VectorType) else kind

    def __len__(self) -> int:
        kind = self.value.type
        return kind.count if isinstance(kind, ir.VectorType) else 1

    def _of(self, element: ir.Type) -> ir.Type:
        """The type of as many of another element."""
        is_vector = isinstance(self.value.type, ir.VectorType)
        return ir.VectorType(element, len(self)) if is_vector else element

    def _new(self, value: ir.Value) -> Vector:
        return Vector(self.builder, value)

    def _constant(self, number: float | list[int]) -> ir.Constant:
        kind = self.value.type
        if not isinstance(kind, ir.VectorType):
            return ir.Constant(kind, number)
        numbers = number if isinstance(number, list) else [number] * len(self)
        return ir.Constant(kind, [ir.Constant(kind.element, n) for n in numbers])

    def filled(self, number: float) -> Vector:
        """This one number in place of all."""
        return self._new(self._constant(number))

    def repeated(self, count: int) -> Vector:
        """``count`` times this one number."""
        kind = ir.VectorType(self._element, count)
        undefined = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(undefined, self.value, I32(0))
        return self._new(self.builder.shuffle_vector(first, undefined, _places([0] * count)))

    def _operate(self, other: Vector | float | list[int], whole: str, real: str = "") -> Vector:
        name = real if self._element == F32 else whole
        if not isinstance(other, Vector):
            return self._new(getattr(self.builder, name)(self.value, self._constant(other)))
        count = max(len(self), len(other))
        left, right = (v if len(v) == count else v.repeated(count) for v in (self, other))
        return self._new(getattr(self.builder, name)(left.value, right.value))

    def __add__(self, other: Vector | float) -> Vector:
        return self._operate(other, "add", "fadd")

    def __sub__(self, other: Vector | float) -> Vector:
        result = self._operate(other, "sub", "fsub")
        if self.coded and isinstance(other, int):
            result.coded = replace(self.coded, numbers=[n - other for n in self.coded.numbers])
        return result

    def __mul__(self, other: Vector | float | list[int]) -> Vector:
        return self._operate(other, "mul", "fmul")

    def __truediv__(self, other: Vector | float) -> Vector:
        return self._operate(other, "fdiv", "fdiv")

    def __and__(self, other: Vector | int) -> Vector:
        return self._operate(other, "and_")

    def __or__(self, other: Vector | int) -> Vector:
        result = self._operate(other, "or_")
        if isinstance(other, Vector) and self.coded and other.coded:
            count = max(len(self.coded.numbers), len(other.coded.numbers))
            result.coded = Coded(result, [0] * len(result), list(range(count)))
        return result

    def __xor__(self, other: Vector | int) -> Vector:
        return self._operate(other, "xor")

    def __lshift__(self, other: Vector | int) -> Vector:
        return self._operate(other, "shl") if other else self

    def __rshift__(self, other: Vector | int | list[int]) -> Vector:
        return self._operate(other, "lshr") if other else self

    def __getitem__(self, index: int | slice) -> Vector:
        """One number, or a part."""
        if isinstance(index, int):
            result = self._new(self.builder.extract_element(self.value, I32(index)))
            result.lane = self, index
            return result
        places = range(len(self))[index]
        return self.take(places)

    def take(self, places: list[int] | range) -> Vector:
        """The numbers at these places."""
        return self._new(self.builder.shuffle_vector(self.value, self.value, _places(places)))

    def then(self, other: Vector) -> Vector:
        """The numbers of this vector and those of another, as long."""
        result = self._new(
            self.builder.shuffle_vector(self.value, other.value, _places(range(2 * len(self))))
        )
        a, b = self.coded, other.coded
        if a and b and a.numbers == b.numbers:
            is_plain = a.source is self and b.source is other
            source = result if is_plain else a.source.then(b.source)
            result.coded = Coded(source, a.shifts + b.shifts, a.numbers)
        return result

    def is_below(self, limit: int) -> Vector:
        """Bits: whether each whole number is less than ``limit``."""
        return self._new(self.builder.icmp_unsigned("<", self.value, self._constant(limit)))

    def is_less_than(self, other: Vector) -> Vector:
        """Bits: whether each float is less than another's; not where one is NaN."""
        return self._new(self.builder.fcmp_ordered("<", self.value, other.value))

    def absolute(self) -> Vector:
        """The floats without their signs."""
        return (self.as_bits() & 0x7FFFFFFF).as_floats()

    def largest(self) -> Vector:
        """The one float greatest of those of a vector, all positive; a NaN is greater than any."""
        # Bits of positive floats are in the order of their values.
        value = self.as_bits()
        while len(value) > 1:
            half = len(value) // 2
            sides = (value[0], value[1]) if half == 1 else (value[:half], value[half:])
            value = sides[0].greater(sides[1])
        return value.as_floats()

    def greater(self, other: Vector) -> Vector:
        """The greater of each two whole numbers without sign."""
        is_less = self.builder.icmp_unsigned("<", self.value, other.value)
        return self._new(is_less).chosen(other, self)

    def nearest(self, low: int, high: int) -> Vector:
        """Floats rounded to whole numbers of 8 bits, to even, no less than low nor past high."""
        low_, high_ = self.filled(float(low)), self.filled(float(high))
        value = self.is_less_than(low_).chosen(low_, self)
        value = high_.is_less_than(value).chosen(high_, value)
        # From here on the last place of a float32 is 1.
        return (value + 1.5 * 2.0**23).as_bits().narrowed(8)

    def halved(self) -> Vector:
        """Half of each even whole number with a sign."""
        return self._new(self.builder.ashr(self.value, self._constant(1)))

    def nibbles(self) -> Vector:
        """The low 4 bits of each two bytes as one byte, the first in its low half."""
        kind = ir.VectorType(I16, len(self) // 2)
        pairs = self._new(self.builder.bitcast(self.value, kind))
        return (pairs & 0x0F | pairs >> 4 & 0xF0).narrowed(8)

    def truncated(self) -> Vector:
        """Floats of less than 2**31 without what is behind the point."""
        whole = self.builder.fptosi(self.value, self._of(I32))
        return self._new(self.builder.sitofp(whole, self._of(F32)))

    def each(self) -> list[Vector]:
        """The numbers, one by one."""
        return [self[i] for i in range(len(self))] if len(self) > 1 else [self]

    def chosen(self, yes: Vector, no: Vector) -> Vector:
        """Where this has a bit, what ``yes`` has, elsewhere what ``no`` has."""
        return self._new(self.builder.select(self.value, yes.value, no.value))

    def widened(self, bits: int) -> Vector:
        """The same whole numbers, not negative, in more bits."""
        return self._new(self.builder.zext(self.value, self._of(ir.IntType(bits))))

    def narrowed(self, bits: int) -> Vector:
        """The low bits."""
        if self._element.width == bits:
            return self
        return self._new(self.builder.trunc(self.value, self._of(ir.IntType(bits))))

    def floats(self, signed: bool = False) -> Vector:
        """The whole numbers as float32."""
        value = self.value
        if self._element.width < 32:
            extend = self.builder.sext if signed else self.builder.zext
            value = extend(value, self._of(I32))
        return self._new(self.builder.sitofp(value, self._of(F32)))

    def as_floats(self) -> Vector:
        """The float32 with these bits."""
        return self._new(self.builder.bitcast(self.value, self._of(F32)))

    def as_bits(self) -> Vector:
        """The bits of float32."""
        return self._new(self.builder.bitcast(self.value, self._of(I32)))

    def spread(self) -> Vector:
        """The bits of one number, lowest first."""
        kind = ir.VectorType(I1, self._element.width)
        return self._new(self.builder.bitcast(self.value, kind))

    def negated_where(self, bits: Vector) -> Vector:
        """The numbers, negative where a bit is set in ``bits``, one whole number."""
        is_real = self._element == F32
        negative = (self.builder.fneg if is_real else self.builder.neg)(self.value)
        return bits.spread().chosen(self._new(negative), self)

    def looked_up(self, table: Sequence[int]) -> Vector:
        """``table[i]`` for each number ``i``, in as many bits."""
        # As a tree of choices, which is the same instructions everywhere.
        layer: list[Vector] = [self._new(self._constant(entry)) for entry in table]
        bit = 0
        while len(layer) > 1:
            is_odd = self._new(
                self.builder.icmp_unsigned("!=", (self & 1 << bit).value, self._constant(0))
            )
            layer = [is_odd.chosen(layer[i + 1], layer[i]) for i in range(0, len(layer), 2)]
            bit += 1
        if self.coded:
            layer[0].coded = replace(self.coded, numbers=list(table))
        return layer[0]

    def field(self, first: int, count: int, place: int = 0) -> Vector:
        """``count`` bits of each whole number from bit ``first`` on, moved to bit ``place``."""
        moved = self >> first - place if first > place else self << place - first
        if first + count != self._element.width or first <= place or place:
            moved = moved & ((1 << count) - 1 << place)
        if count + place <= 6:
            source, shift = (moved, 0) if place else (self, first)
            moved.coded = Coded(source, [shift] * len(self), list(range(1 << count + place)))
        return moved


@dataclass(frozen=True)
class Coded:
    """Whole numbers that can have a few values only.

    They are ``numbers[code]``, where codes are the low bits of ``source >> shifts``: as many bits
    as tell ``numbers`` apart, whose count is a power of two.
    """

    source: Vector
    shifts: list[int]
    numbers: list[int]

    def codes(self) -> Vector:
        """16 bits each, those that do not belong to the code included."""
        return self.source.narrowed(8).widened(16) >> self.shifts

    def tables(self, count: int) -> list[Vector]:
        """The numbers as float32, in vectors of ``count``: one or more, the last repeated."""
        numbers = np.resize(self.numbers, max(len(self.numbers), count)).reshape(-1, count)
        kind = ir.VectorType(F32, count)
        return [
            Vector(self.source.builder, ir.Constant(kind, [F32(float(n)) for n in table]))
            for table in numbers
        ]


def looked_up_words(codes: Vector, tables: list[Vector]) -> Vector:
    """The word of one table or of two, each as long as ``codes``, that each code's low bits name.

    Instructions of processors with :data:`BFLOAT_INSTRUCTIONS`.
    """
    name, arguments = "permvar", [tables[0], codes]
    if len(tables) == 2:
        name, arguments = "vpermi2var", [tables[0], codes, tables[1]]
    name = f"llvm.x86.avx512.{name}.hi.{16 * len(codes)}"
    values = [vector.value for vector in arguments]
    return Vector(codes.builder, intrinsic(codes.builder, name, codes.value.type, *values))


def intrinsic(builder: ir.IRBuilder, name: str, result: ir.Type, *arguments: ir.Value) -> ir.Value:
    """What an instruction that LLVM has a name for gives."""
    function = builder.module.globals.get(name) or ir.Function(
        builder.module, ir.FunctionType(result, [value.type for value in arguments]), name
    )
    return builder.call(function, arguments)


def fetch(builder: ir.IRBuilder, address: ir.Value, nbytes: int, cache: int = 1) -> None:
    """Ask memory for bytes that are soon needed; there may be none at the address.

    Args:
        cache: the level of the cache that they are to come to.
    """
    start = builder.bitcast(address, I8.as_pointer())
    for offset in range(0, nbytes, _CACHE_LINE):
        line = builder.gep(start, [I64(offset)])
        hints = I32(0), I32(4 - cache), I32(1)  # to read, how near, data
        intrinsic(builder, "llvm.prefetch.p0", ir.VoidType(), line, *hints)


def gathered(numbers: list[Vector]) -> Vector:
    """Single numbers as a vector; one number stays one."""
    first = numbers[0]
    if len(numbers) == 1:
        return first
    value = ir.Constant(ir.VectorType(first.value.type, len(numbers)), ir.Undefined)
    for place, number in enumerate(numbers):
        value = first.builder.insert_element(value, number.value, I32(place))
    return Vector(first.builder, value)


def _places(places: list[int] | range) -> ir.Constant:
    kind = ir.VectorType(I32, len(places))
    return ir.Constant(kind, [ir.Constant(I32, place) for place in places])


class Bytes:
    """Where a decoder reads: the bytes of a block, or of a table, from some place on."""

    def __init__(self, builder: ir.IRBuilder, pointer: ir.Value) -> None:
        self._builder = builder
        self._pointer = pointer

    def at(self, offset: int | Vector) -> Bytes:
        """From byte ``offset`` on."""
        index = I64(offset) if isinstance(offset, int) else offset.widened(64).value
        return Bytes(self._builder, self._builder.gep(self._pointer, [index]))

    def _load(self, kind: ir.Type, offset: int) -> Vector:
        address = self._builder.gep(self._pointer, [I64(offset)])
        address = self._builder.bitcast(address, kind.as_pointer())
        return Vector(self._builder, self._builder.load(address, align=1))

    def byte(self, offset: int) -> Vector:
        """A whole number of 8 bits."""
        return self._load(I8, offset)

    def word(self, offset: int, bits: int) -> Vector:
        """A little-endian whole number."""
        return self._load(ir.IntType(bits), offset)

    def bytes(self, offset: int, count: int = LANES) -> Vector:
        """``count`` bytes."""
        return self._load(ir.VectorType(I8, count), offset)

    def words(self, offset: int, bits: int, count: int) -> Vector:
        """``count`` little-endian whole numbers."""
        return self._load(ir.VectorType(ir.IntType(bits), count), offset)

    def half(self, offset: int) -> Vector:
        """A float16 as float32, every NaN as the usual one."""
        return floats_of_halves(usual_half(self.word(offset, 16)))

    def table(self, name: str, content: np.ndarray) -> Bytes:
        """A table that the machine code carries along, under a name of its own."""
        module, data = self._builder.module, bytearray(content.tobytes())
        kind = ir.ArrayType(I8, len(data))
        if name not in module.globals:
            variable = ir.GlobalVariable(module, kind, name)
            variable.global_constant, variable.linkage = True, "internal"
            variable.initializer = ir.Constant(kind, data)
        variable = module.globals[name]
        return Bytes(self._builder, self._builder.bitcast(variable, I8.as_pointer()))


def usual_half(bits: Vector) -> Vector:
    """The bits of a float16, every NaN replaced by the usual one."""
    return (bits & 0x7FFF).is_below(0x7C01).chosen(bits, bits & 0 | 0x7E00)


def floats_of_halves(bits: Vector) -> Vector:
    """The float16 numbers with these bits, as float32."""
    builder = bits.builder
    if HALF_INSTRUCTIONS:
        halves = builder.bitcast(bits.value, bits._of(ir.HalfType()))
        return Vector(builder, builder.fpext(halves, bits._of(F32)))
    word = bits.widened(32)
    size, sign = word & 0x7FFF, (word & 0x8000) << 16
    # The exponents' biases are 112 apart; again for infinity and NaN.
    once, twice = (size << 13) + (112 << 23), (size << 13) + (224 << 23)
    subnormal = (size.floats() * 2.0**-24).as_bits()
    result = size.is_below(0x0400).chosen(subnormal, size.is_below(0x7C00).chosen(once, twice))
    return (result | sign).as_floats()


def stored(value: Vector, dtype: torch.dtype, usual: bool) -> Vector:
    """Float32 numbers rounded to a dtype, as stored; ``usual`` as of ``Target.put``."""
    if dtype == torch.float16:
        return _halves(value)
    return _bfloats(value, usual) if dtype == torch.bfloat16 else value


def restored(value: Vector, dtype: torch.dtype) -> Vector:
    """The float32 numbers of what :func:`stored` gave."""
    if dtype == torch.float16:
        return floats_of_halves(value)
    return (value.widened(32) << 16).as_floats() if dtype == torch.bfloat16 else value


def _halves(value: Vector) -> Vector:
    """The bits of float32 numbers rounded to float16."""
    builder = value.builder
    if HALF_INSTRUCTIONS:
        halves = builder.fptrunc(value.value, value._of(ir.HalfType()))
        return Vector(builder, builder.bitcast(halves, value._of(I16)))
    bits = value.as_bits()
    size, sign = bits & 0x7FFFFFFF, bits >> 16 & 0x8000
    odd = size >> 13 & 1
    normal = size - (112 << 23) + 0xFFF + odd >> 13  # the too large carry over into infinity
    # Next to 0.5 the last place of a float32 is a float16's smallest number.
    subnormal = (size.as_floats() + 0.5).as_bits() - 0x3F000000
    result = size.is_below(0x38800000).chosen(subnormal, normal)
    special = size.is_below(0x7F800001).chosen(size & 0 | 0x7C00, size & 0 | 0x7E00)
    result = size.is_below(0x47800000).chosen(result, special)
    return (result | sign).narrowed(16)


def _bfloats(value: Vector, usual: bool) -> Vector:
    """The bits of float32 numbers rounded to bfloat16; ``usual`` as of ``Target.put``."""
    builder = value.builder
    if usual and BFLOAT_INSTRUCTIONS:
        bfloats = builder.fptrunc(value.value, value._of(BFLOAT))
        return Vector(builder, builder.bitcast(bfloats, value._of(I16)))
    bits = value.as_bits()
    result = bits + 0x7FFF + (bits >> 16 & 1) >> 16
    if not usual:
        is_number = (bits & 0x7FFFFFFF).is_below(0x7F800001)
        result = is_number.chosen(result, bits >> 16 | 0x40)
    return result.narrowed(16)


#: dtype of the result -> what its numbers are stored as.
STORED = {torch.float32: F32, torch.float16: I16, torch.bfloat16: I16}


def store(builder: ir.IRBuilder, pointer: ir.Value, offset: int, value: Vector) -> None:
    """Write a vector from the place on that is ``offset`` elements behind a pointer."""
    kind, element = value.value.type, pointer.type.pointee
    address = builder.bitcast(builder.gep(pointer, [I64(offset)]), kind.as_pointer())
    builder.store(value.value, address, align=4 if element == F32 else element.width // 8)
