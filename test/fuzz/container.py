"""A GGUF file taken apart, so that it can be put together wrongly.

Everything here writes what it is given: lengths, counts and types need not be true.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import NamedTuple

from gguf import GGML_QUANT_SIZES, GGUFReader
from gguf import GGUFValueType as Kind

ALIGNMENT = 32

_LAYOUTS = {
    Kind.UINT8: "B",
    Kind.INT8: "b",
    Kind.UINT16: "H",
    Kind.INT16: "h",
    Kind.UINT32: "I",
    Kind.INT32: "i",
    Kind.UINT64: "Q",
    Kind.INT64: "q",
    Kind.FLOAT32: "f",
    Kind.FLOAT64: "d",
    Kind.BOOL: "B",
}
NUMBERS = tuple(_LAYOUTS)


class Array(NamedTuple):
    """Elements of one type; ``count`` is what the file says of their number, the truth if None."""

    element: int
    items: tuple
    count: int | None = None


class Entry(NamedTuple):
    """A key and its value: a number, bytes (a string) or an :class:`Array`, as ``kind`` says."""

    key: bytes
    kind: int
    value: object


class Tensor(NamedTuple):
    """A tensor; ``dims`` as in the file, innermost first; ``offset`` None where it belongs."""

    name: bytes
    dims: tuple[int, ...]
    kind: int
    data: bytes
    offset: int | None = None


class Contents(NamedTuple):
    """A whole file; ``counts`` of tensors and keys, the truth where None."""

    entries: tuple[Entry, ...]
    tensors: tuple[Tensor, ...]
    version: int = 3
    counts: tuple[int | None, int | None] = (None, None)


def entry(key: str, value: object) -> Entry:
    """An entry of the type that converters choose for a Python value."""
    if isinstance(value, list | tuple):
        return Entry(key.encode(), Kind.ARRAY, _array(value))
    kind, value = _scalar(value)
    return Entry(key.encode(), kind, value)


def _array(values: list | tuple) -> Array:
    if not values:
        return Array(Kind.INT32, ())
    kinds, items = zip(*map(_scalar, values), strict=True)
    kind = Kind.INT32 if kinds[0] == Kind.UINT32 else kinds[0]
    return Array(kind, items)


def _scalar(value: object) -> tuple[int, object]:
    if isinstance(value, str | bytes):
        return Kind.STRING, value.encode() if isinstance(value, str) else value
    if isinstance(value, float):
        return Kind.FLOAT32, value
    return (Kind.BOOL if isinstance(value, bool) else Kind.UINT32), int(value)


def number(kind: int, value: object) -> bytes:
    """A number as bytes of a type, wrapped around or rounded to infinity where it does not fit."""
    layout = "<" + _LAYOUTS[Kind(kind)]
    size = struct.calcsize(layout)
    try:
        if kind in (Kind.FLOAT32, Kind.FLOAT64):
            return struct.pack(layout, float(value))
        return (int(value) % (1 << 8 * size)).to_bytes(size, "little")
    except OverflowError:
        return struct.pack(layout, math.inf) if "f" in layout or "d" in layout else bytes(size)
    except ValueError:  # int(nan)
        return bytes(size)


def string(value: bytes) -> bytes:
    """A string with its length before it."""
    return struct.pack("<Q", len(value)) + value


@lru_cache(maxsize=4096)
def _entry_bytes(item: Entry) -> bytes:
    head = string(item.key) + struct.pack("<I", item.kind)
    return head + _value_bytes(item.kind, item.value)


def _value_bytes(kind: int, value: object) -> bytes:
    if isinstance(value, Array):
        count = len(value.items) if value.count is None else value.count
        head = struct.pack("<IQ", value.element, count % 2**64)
        return head + b"".join(_value_bytes(value.element, item) for item in value.items)
    if isinstance(value, bytes):
        return string(value)
    return number(kind if kind in _LAYOUTS else Kind.UINT32, value)


def assemble(contents: Contents) -> bytes:
    """The bytes of the file."""
    entries, tensors = contents.entries, contents.tensors
    counts = [
        len(items) if count is None else count
        for items, count in zip((tensors, entries), contents.counts, strict=True)
    ]
    parts = [b"GGUF", struct.pack("<IQQ", contents.version, *(count % 2**64 for count in counts))]
    parts += map(_entry_bytes, entries)
    offset = 0
    for tensor in tensors:
        place = offset if tensor.offset is None else tensor.offset
        parts.append(string(tensor.name) + struct.pack("<I", len(tensor.dims)))
        parts += (struct.pack("<Q", size % 2**64) for size in tensor.dims)
        parts.append(struct.pack("<IQ", tensor.kind, place % 2**64))
        offset += -(-len(tensor.data) // ALIGNMENT) * ALIGNMENT
    parts.append(bytes(-sum(map(len, parts)) % ALIGNMENT))
    for tensor in tensors:
        parts += tensor.data, bytes(-len(tensor.data) % ALIGNMENT)
    return b"".join(parts)


def data_size(dims: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor; a row that is no whole number of blocks is rounded up."""
    block, nbytes = GGML_QUANT_SIZES.get(kind, (1, 1))  # some types are no types
    columns, *rows = dims or (1,)
    return -(-columns // block) * nbytes * math.prod(rows)


def read(path) -> Contents:
    """A whole, valid file."""
    reader = GGUFReader(path)
    entries = []
    for name, field in reader.fields.items():
        if name.startswith("GGUF."):
            continue
        kind, value = field.types[0], field.contents()
        if kind == Kind.ARRAY:
            items = tuple(v.encode() if isinstance(v, str) else v for v in value)
            value = Array(field.types[1], items)
        elif kind == Kind.STRING:
            value = value.encode()
        entries.append(Entry(name.encode(), kind, value))
    tensors = tuple(
        Tensor(t.name.encode(), tuple(map(int, t.shape)), t.tensor_type, t.data.tobytes())
        for t in reader.tensors
    )
    return Contents(tuple(entries), tensors)
