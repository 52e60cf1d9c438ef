"""The one type that kernels compute with, and the backend that gives its operators a meaning.

A kernel is a Python function of :class:`Value`.  Under :class:`~.llvm.LLVM` it is called once, and
each operation appends an instruction; under :class:`~.interpreter.NumPy` each operation is done at
once.  So the function is the program, and Python is its macro language: a Python loop is unrolled,
a Python number is a constant.

Floats are float32, computed in the order that is written: nothing is fused or reordered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import ascend_gguf.codegen.processor as processor
from ascend_gguf.codegen.backend import backend
from ascend_gguf.codegen.kinds import F32, I1, I8, I32, I64, Kind, pointer

# ARM's look-up in a table of 16 bytes.
_TABLE = "llvm.aarch64.neon.tbl1.v16i8"

Number: TypeAlias = int | float
#: What an operator takes for its other side: a number for all lanes, or one for each.
Operand: TypeAlias = "Value | Number | list[int]"


@dataclass(frozen=True, eq=False)
class Codebook:
    """Of whole numbers that can have a few values only: they are ``values[code]``.

    Codes are the low bits of ``source >> shifts``: as many as tell ``values`` apart, whose count is
    a power of two.
    """

    source: Value
    shifts: list[int]
    values: list[int]

    def united(self, other: Codebook, result: Value) -> Codebook:
        """Of ``result``, the bits of two whole numbers together."""
        count = max(len(self.values), len(other.values))
        return Codebook(result, [0] * len(result), list(range(count)))

    def followed_by(self, other: Codebook, a: Value, b: Value, both: Value) -> Codebook | None:
        """Of ``both``, the lanes of ``a`` and then those of ``b``, whose codebooks these are."""
        if self.values != other.values:
            return None
        is_plain = self.source is a and other.source is b
        source = both if is_plain else self.source.concat(other.source)
        return Codebook(source, self.shifts + other.shifts, self.values)


class Value:
    """One or more whole numbers of some width, float32, or an address.

    ``+ - * /`` of floats; ``+ - * // % & | ^ << >>`` of whole numbers, modulo their width, where
    ``//``, ``%`` and comparisons take them with a sign and ``>>`` fills with zeros; ``+`` moves an
    address by elements.  The other operand may be a Python number or a scalar: it meets all lanes.

    Attributes:
        raw: what the backend holds.
        kind, count: of a lane, and how many lanes; 1 is a scalar.
        codebook: how else to compute whole numbers that can have a few values only, where known.
        lane: of a scalar, the vector it is of and its place there, where known.
    """

    __slots__ = ("codebook", "count", "kind", "lane", "raw")

    def __init__(self, raw: Any, kind: Kind, count: int = 1) -> None:
        self.raw, self.kind, self.count = raw, kind, count
        self.codebook: Codebook | None = None
        self.lane: tuple[Value, int] | None = None

    def __len__(self) -> int:
        return self.count

    def __bool__(self) -> bool:
        raise TypeError("a kernel is written before its values are known: use when() or select()")

    # Arithmetic

    def like(self, other: Operand) -> Value:
        """A value as it is, a number as a constant of this kind."""
        if isinstance(other, Value):
            return other
        numbers = other if isinstance(other, list) else [other] * self.count
        return Value(backend().constant(self.kind, numbers), self.kind, self.count)

    def _matched(self, other: Operand) -> tuple[Value, Value]:
        """Both, with as many lanes."""
        a, b = self, self.like(other)
        if a.count != b.count:
            a, b = (a.splat(b.count), b) if a.count == 1 else (a, b.splat(a.count))
        return a, b

    def _operate(self, other: Operand, name: str, swapped: bool = False) -> Value:
        a, b = self._matched(other)
        name = f"f{name}" if self.kind.is_float else name
        left, right = (b, a) if swapped else (a, b)
        return Value(backend().binary(name, left.raw, right.raw), a.kind, a.count)

    def __add__(self, other: Operand) -> Value:
        if self.kind.element is None:
            return self._operate(other, "add")
        index = other if isinstance(other, Value) else whole(other)
        return Value(backend().move(self.raw, index.raw, self.kind.element), self.kind)

    def __sub__(self, other: Operand) -> Value:
        result = self._operate(other, "sub")
        if self.codebook and isinstance(other, int):
            values = [value - other for value in self.codebook.values]
            result.codebook = replace(self.codebook, values=values)
        return result

    def __mul__(self, other: Operand) -> Value:
        return self._operate(other, "mul")

    def __truediv__(self, other: Operand) -> Value:
        return self._operate(other, "div")

    def __rsub__(self, other: Operand) -> Value:
        return self._operate(other, "sub", swapped=True)

    def __rtruediv__(self, other: Operand) -> Value:
        return self._operate(other, "div", swapped=True)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, other: Operand) -> Value:
        return self._operate(other, "sdiv")

    def __mod__(self, other: Operand) -> Value:
        return self._operate(other, "srem")

    def __and__(self, other: Operand) -> Value:
        return self._operate(other, "and_")

    def __or__(self, other: Operand) -> Value:
        result = self._operate(other, "or_")
        if isinstance(other, Value) and self.codebook and other.codebook:
            result.codebook = self.codebook.united(other.codebook, result)
        return result

    def __xor__(self, other: Operand) -> Value:
        return self._operate(other, "xor")

    def __lshift__(self, other: Operand) -> Value:
        return self if isinstance(other, int) and not other else self._operate(other, "shl")

    def __rshift__(self, other: Operand) -> Value:
        return self if isinstance(other, int) and not other else self._operate(other, "lshr")

    def shift_signed(self, bits: int) -> Value:
        """``>>`` that fills with the sign."""
        return self._operate(bits, "ashr")

    def __neg__(self) -> Value:
        if self.kind.is_float:
            return Value(backend().convert("fneg", self.raw, F32, self.count), F32, self.count)
        return 0 - self

    # Comparisons

    def _compare(self, other: Operand, name: str, sign: str) -> Value:
        a, b = self._matched(other)
        return Value(backend().compare(name, sign, a.raw, b.raw), I1, a.count)

    def _ordered(self, other: Operand, name: str) -> Value:
        return self._compare(other, name, "ordered" if self.kind.is_float else "signed")

    def __lt__(self, other: Operand) -> Value:
        return self._ordered(other, "<")

    def __le__(self, other: Operand) -> Value:
        return self._ordered(other, "<=")

    def __gt__(self, other: Operand) -> Value:
        return self._ordered(other, ">")

    def __ge__(self, other: Operand) -> Value:
        return self._ordered(other, ">=")

    def below(self, other: Operand) -> Value:
        """Whether each whole number, taken without a sign, is less."""
        return self._compare(other, "<", "unsigned")

    def differs(self, other: Operand) -> Value:
        """Whether each is another number; NaN always is."""
        return self._compare(other, "!=", "unordered" if self.kind.is_float else "unsigned")

    def select(self, yes: Value, no: Operand) -> Value:
        """Of bits: what ``yes`` has where they are set, elsewhere what ``no`` has."""
        raw = backend().select(self.raw, yes.raw, yes.like(no).raw)
        return Value(raw, yes.kind, yes.count)

    # Lanes

    def filled(self, number: Number) -> Value:
        """This number in place of all."""
        return self.like(number)

    def splat(self, count: int) -> Value:
        """A scalar in all of ``count`` lanes."""
        if count == 1:
            return self
        return Value(backend().splat(self.raw, self.kind, count), self.kind, count)

    def __getitem__(self, index: int | slice) -> Value:
        """One lane, or some."""
        if isinstance(index, slice):
            return self.take(range(self.count)[index])
        if self.count == 1:
            return self
        result = Value(backend().extract(self.raw, index), self.kind)
        result.lane = self, index
        return result

    def take(self, places: Sequence[int]) -> Value:
        """The lanes at these places."""
        return self[places[0]] if len(places) == 1 else shuffle(self, self, places)

    def concat(self, other: Value) -> Value:
        """The lanes of this and those of another, as many."""
        result = shuffle(self, other, range(2 * self.count))
        if self.codebook and other.codebook:
            result.codebook = self.codebook.followed_by(other.codebook, self, other, result)
        return result

    def lanes(self) -> list[Value]:
        """One by one."""
        return [self[i] for i in range(self.count)]

    # Conversions

    def _convert(self, name: str, kind: Kind) -> Value:
        return Value(backend().convert(name, self.raw, kind, self.count), kind, self.count)

    def zext(self, kind: Kind) -> Value:
        """Whole numbers in more bits, the new ones zero."""
        return self if kind is self.kind else self._convert("zext", kind)

    def trunc(self, kind: Kind) -> Value:
        """The low bits."""
        return self if kind is self.kind else self._convert("trunc", kind)

    def bitcast(self, kind: Kind) -> Value:
        """The same bits as lanes of another kind, as many as there then are."""
        count = self.count * self.kind.bits // kind.bits
        return Value(backend().convert("bitcast", self.raw, kind, count), kind, count)

    def convert(self, kind: Kind) -> Value:
        """Floats in another width, rounded to nearest even where it is less."""
        return self._convert("fpext" if kind.bits > self.kind.bits else "fptrunc", kind)

    def to_float(self, signed: bool = False) -> Value:
        """Whole numbers as float32."""
        narrow = self.kind.bits < 32
        wide = self._convert("sext" if signed else "zext", I32) if narrow else self
        return wide._convert("sitofp", F32)

    def to_int(self) -> Value:
        """Floats of less than 2**31 without what is behind the point, 32 bits each."""
        return self._convert("fptosi", I32)

    def cast(self, element: Kind) -> Value:
        """The same address, of an array of something else."""
        return Value(backend().cast(self.raw, element), pointer(element))

    # Bits

    def bits(self) -> Value:
        """Each bit of a whole number as a lane, the lowest first."""
        if not processor.IS_ARM:
            return self.bitcast(I1)
        # Without masks in registers, LLVM would take such lanes one by one.
        octets = self.bitcast(I8)
        places = range(self.kind.bits)
        spread = shuffle(octets, octets, [place // 8 for place in places])
        return (spread & [1 << place % 8 for place in places]).differs(0)

    def negate_where(self, bits: Value) -> Value:
        """The lanes, negative where a bit is set in ``bits``, one whole number."""
        return bits.bits().select(-self, self)

    def lookup(self, table: Sequence[int]) -> Value:
        """``table[i]`` for each number ``i`` below 16, 8 bits each."""
        entries = [int(entry) for entry in table]
        if processor.IS_ARM and self.count == len(entries):
            raw = backend().call(_TABLE, I8, self.count, self.like(entries).raw, self.raw)
            result = Value(raw, I8, self.count)
        else:
            result = self._chosen(entries)
        if self.codebook:
            result.codebook = replace(self.codebook, values=entries)
        return result

    def _chosen(self, entries: list[int]) -> Value:
        """Entries by a tree of choices, which is the same instructions everywhere."""
        layer, bit = [self.filled(entry) for entry in entries], 0
        while len(layer) > 1:
            is_odd = (self & 1 << bit).differs(0)
            layer = [is_odd.select(layer[i + 1], layer[i]) for i in range(0, len(layer), 2)]
            bit += 1
        return layer[0]

    def field(self, first: int, count: int, place: int = 0) -> Value:
        """``count`` bits of each whole number from bit ``first`` on, moved to bit ``place``."""
        moved = self >> first - place if first > place else self << place - first
        if first + count != self.kind.bits or first <= place or place:
            moved = moved & ((1 << count) - 1 << place)
        if count + place <= 6:
            source, shift = (moved, 0) if place else (self, first)
            moved.codebook = Codebook(source, [shift] * len(self), list(range(1 << count + place)))
        return moved


def whole(number: Value | Number | list[int]) -> Value:
    """An index, a number of 64 bits."""
    if isinstance(number, Value):
        return number
    assert isinstance(number, int)
    return Value(backend().constant(I64, [number]), I64)


def splat(number: Number, count: int = 1, kind: Kind = F32) -> Value:
    """A number in all of ``count`` lanes."""
    return Value(backend().constant(kind, [number] * count), kind, count)


def shuffle(a: Value, b: Value, places: Sequence[int]) -> Value:
    """Lanes of two vectors: those of the second come after those of the first."""
    return Value(backend().shuffle(a.raw, b.raw, places), a.kind, len(places))


def transposed(rows: Sequence[Value]) -> list[Value]:
    """Columns of as many rows as each has lanes: halves change places, then their halves."""
    rows, distance = list(rows), len(rows) // 2
    while distance:
        near = [i for i in range(len(rows)) if not i & distance]
        first = [i if i in near else i - distance + len(rows) for i in range(len(rows))]
        second = [i + distance if i in near else i + len(rows) for i in range(len(rows))]
        for i in near:
            a, b = rows[i], rows[i + distance]
            rows[i], rows[i + distance] = shuffle(a, b, first), shuffle(a, b, second)
        distance //= 2
    return rows


def collect(lanes: Sequence[Value]) -> Value:
    """Scalars as the lanes of one value."""
    first = lanes[0]
    if len(lanes) == 1:
        return first
    raw = backend().collect([lane.raw for lane in lanes], first.kind)
    return Value(raw, first.kind, len(lanes))
