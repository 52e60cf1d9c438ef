"""The backend that does each operation at once, in NumPy: what a kernel means.

A value is an array of its lanes, whole numbers without a sign.  Addresses are those of real memory.
Instructions of particular processors are here in their plain form.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ascend_gguf.codegen.kinds import BF16, F16, F32, I8, I64, Kind

Array = np.ndarray

_WORDS = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
#: Of bfloat16 the bits, which NumPy has no name for.
_DTYPES: dict[Kind, np.dtype] = {
    F32: np.dtype(np.float32),
    F16: np.dtype(np.float16),
    BF16: _WORDS[16],
}
_ALIGNED = 64

_COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "!=": np.not_equal,
}
_BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "and_": np.bitwise_and,
    "or_": np.bitwise_or,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "lshr": np.right_shift,
    "ashr": lambda a, b: np.right_shift(_signed(a), b.astype(_signed(a).dtype)).view(a.dtype),
    "sdiv": lambda a, b: ((_signed(a) - _remainder(a, b)) // _signed(b)).view(a.dtype),
    "srem": lambda a, b: _remainder(a, b).view(a.dtype),
    "fadd": np.add,
    "fsub": np.subtract,
    "fmul": np.multiply,
    "fdiv": np.divide,
}


def _dtype(kind: Kind) -> np.dtype:
    if kind.bits == 1:
        return np.dtype(bool)
    return _DTYPES[kind] if kind in _DTYPES else _WORDS[kind.bits]


def _signed(a: Array) -> Array:
    return a.view(f"i{a.dtype.itemsize}")


def _remainder(a: Array, b: Array) -> Array:
    """With the sign of ``a``, as processors do it."""
    return np.fmod(_signed(a), _signed(b))


def _bfloat_bits(a: Array) -> Array:
    """Float32 rounded to bfloat16 as the instruction does: subnormals become 0."""
    bits = a.view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    even = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)
    result = np.where(size > 0x7F800000, bits >> np.uint32(16) | np.uint32(0x40), even)
    result = np.where(size < 0x00800000, bits >> np.uint32(16) & np.uint32(0x8000), result)
    return result.astype(np.uint16)


def _floats_of_bfloats(bits: Array) -> Array:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


class NumPy:
    """Runs a kernel."""

    def __init__(self) -> None:
        self._kept: list[Array] = []  # memory whose addresses were handed out
        self._tables: dict[str, Array] = {}

    # Arithmetic

    def constant(self, kind: Kind, numbers: Sequence[float]) -> Array:
        if kind.is_float or kind.bits == 1:
            return np.array(numbers, _dtype(kind))
        return np.array([int(n) & (1 << kind.bits) - 1 for n in numbers], _dtype(kind))

    def binary(self, name: str, a: Array, b: Array) -> Array:
        return _BINARY[name](a, b)

    def compare(self, name: str, sign: str, a: Array, b: Array) -> Array:
        if sign == "signed":
            a, b = _signed(a), _signed(b)
        return _COMPARE[name](a, b)

    def select(self, condition: Array, yes: Array, no: Array) -> Array:
        return np.where(condition, yes, no)

    def convert(self, name: str, a: Array, kind: Kind, count: int) -> Array:
        if name == "bitcast":
            return self._bitcast(a, kind)
        if name == "fneg":
            return -a
        if name == "fptrunc" and kind is BF16:
            return _bfloat_bits(a)
        if name == "fptosi":
            return a.astype(np.int32).view(np.uint32)
        if name in ("sext", "sitofp"):
            a = _signed(a)
        result = a.astype(_dtype(kind) if name != "sext" else f"i{kind.nbytes}")
        return result.view(_dtype(kind))

    @staticmethod
    def _bitcast(a: Array, kind: Kind) -> Array:
        if kind.bits == 1:
            return np.unpackbits(a.view(np.uint8), bitorder="little").astype(bool)
        return np.ascontiguousarray(a).view(_dtype(kind))

    def shuffle(self, a: Array, b: Array, places: Sequence[int]) -> Array:
        return np.concatenate([a, b])[list(places)]

    def extract(self, a: Array, place: int) -> Array:
        return a[place : place + 1]

    def collect(self, lanes: Sequence[Array], kind: Kind) -> Array:
        return np.concatenate(lanes)

    def splat(self, a: Array, kind: Kind, count: int) -> Array:
        return np.repeat(a, count)

    def call(self, name: str, kind: Kind, count: int, *arguments: Array) -> Array:
        if name.startswith("llvm.fmuladd"):
            a, b, total = (value.astype(np.float64) for value in arguments)
            return (a * b + total).astype(np.float32)
        if name == "llvm.sqrt.f32":
            return np.sqrt(arguments[0])
        if "permvar" in name or "tbl1" in name:
            table, codes = arguments
            return table[codes % len(table)]
        if "vpermi2var" in name:
            first, codes, second = arguments
            return np.concatenate([first, second])[codes % (2 * len(first))]
        if name == "llvm.x86.avx512bf16.dpbf16ps.512":
            total, *pairs = arguments
            a, b = (_floats_of_bfloats(bits).astype(np.float64) for bits in pairs)
            product = a * b
            return (total + product[1::2] + product[0::2]).astype(np.float32)
        raise NotImplementedError(f"{name} has no definition in NumPy")

    # Memory

    def address(self, number: Array, element: Kind) -> Array:
        return number

    def move(self, address: Array, index: Array, element: Kind) -> Array:
        return address + index * np.uint64(element.nbytes)

    def cast(self, address: Array, element: Kind) -> Array:
        return address

    def load(self, address: Array, kind: Kind, count: int, align: int) -> Array:
        data = ctypes.string_at(int(address[0]), kind.nbytes * count)
        return np.frombuffer(data, _dtype(kind))

    def store(self, address: Array, value: Array, kind: Kind, align: int) -> None:
        data = value.tobytes()
        ctypes.memmove(int(address[0]), data, len(data))

    def prefetch(self, address: Array, level: int) -> None:
        pass

    def table(self, name: str, content: bytes) -> Array:
        if name not in self._tables:
            self._tables[name] = np.frombuffer(content, np.uint8)
        return self.constant(I64, [self._tables[name].ctypes.data])

    def local(self, nbytes: Array) -> Array:
        memory = np.zeros(int(nbytes[0]) + _ALIGNED, _dtype(I8))
        self._kept.append(memory)
        return self.constant(I64, [-(-memory.ctypes.data // _ALIGNED) * _ALIGNED])

    # Control

    def fold(
        self,
        bounds: tuple[Array, Array, int],
        initial: list[tuple[Array, Kind, int]],
        body: Callable[[Array, list[Array]], list[Array]],
    ) -> list[Array]:
        values = [raw for raw, _, _ in initial]
        for i in self.loop(*bounds):
            values = body(i, values)
        return values

    def loop(self, start: Array, stop: Array, step: int) -> Iterator[Array]:
        first, last = (int(_signed(bound)[0]) for bound in (start, stop))
        for i in range(first, last, step):
            yield self.constant(I64, [i])

    def branch(
        self, condition: Array, then: Callable[[], None], otherwise: Callable[[], None] | None
    ) -> None:
        if condition[0]:
            then()
        elif otherwise is not None:
            otherwise()

    def switch(self, value: Array, cases: range, body: Callable[[int], None]) -> None:
        if int(value[0]) in cases:
            body(int(value[0]))

    # Threads

    def each_tile(self, next_tile: Array, done: Array, tiles: Array) -> Iterator[Array]:
        yield from self.loop(self.constant(I64, [0]), tiles, 1)
        self.store(done, tiles, I64, 8)

    def load_acquire(self, address: Array) -> Array:
        return self.load(address, I64, 1, 8)

    def call_kernel(self, code: Array, launch: Array) -> None:
        prototype = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        prototype(int(code[0]))(int(launch[0]))

    def wait_for(self, address: Array, least: Array, looks: int, nap: int) -> None:
        if self.load_acquire(address) < least:
            raise RuntimeError("one thread waits for tiles that no other does")
