"""The key-value section of a GGUF file."""

from __future__ import annotations

from typing import Any

import numpy as np
from gguf import GGUFValueType

from ascend_gguf.errors import CONVERT_AGAIN
from ascend_gguf.reader.cursor import Cursor

#: Types are named as numpy's; a truth value is a byte, whatever it holds.
_NUMBERS: dict[int, np.dtype] = {
    kind: np.dtype(kind.name.lower().replace("bool", "uint8")).newbyteorder("<")
    for kind in GGUFValueType
    if kind not in (GGUFValueType.STRING, GGUFValueType.ARRAY)
}

SMALLEST_PAIR = 8 + 4 + 1  # bytes: length of an empty key, value type, a one-byte value


def read_metadata(cursor: Cursor, count: int) -> dict[str, Any]:
    """Read ``count`` pairs of key and value.

    Returns:
        Python values; arrays of numbers are read-only numpy arrays of the file's type, arrays of
        strings are lists. Bytes that are not UTF-8 become lone surrogates in a string value
        (PEP 383), so ``value.encode("utf-8", "surrogateescape")`` is always what the file holds.

    Raises:
        GGUFError: names the key that cannot be read.
    """
    cursor.section = "metadata"
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = cursor.key = cursor.name("a metadata key")
        if key in metadata:
            raise cursor.error("the key occurs twice", hint=CONVERT_AGAIN)
        metadata[key] = _read_value(cursor)
        cursor.key = None
    return metadata


def _read_value(cursor: Cursor) -> Any:
    value_type = cursor.uint32()
    if value_type != GGUFValueType.ARRAY:
        values = _read_values(cursor, value_type, 1)
        return values[0] if isinstance(values, list) else values[0].item()
    value_type = cursor.uint32()
    if value_type == GGUFValueType.ARRAY:
        # The format allows it, llama.cpp refuses it, and no known model has one.
        raise cursor.error(
            "arrays of arrays are not supported", hint="Convert the model again without this key."
        )
    return _read_values(cursor, value_type, cursor.uint64())


def _read_values(cursor: Cursor, value_type: int, count: int) -> np.ndarray | list[str]:
    if value_type == GGUFValueType.STRING:
        return cursor.strings(count, "surrogateescape")
    if value_type not in _NUMBERS:
        raise cursor.error(
            "unknown metadata value type",
            found=f"type {value_type}",
            expected="one of " + ", ".join(f"{t.name}={t.value}" for t in GGUFValueType),
        )
    values = cursor.numbers(_NUMBERS[value_type], count)
    if value_type == GGUFValueType.BOOL:
        values = values != 0  # as llama.cpp reads a byte that is neither 0 nor 1
    values.setflags(write=False)  # every user of the file shares them
    return values
