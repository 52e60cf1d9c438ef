"""What a decoder reads: the bytes of a block, or of a table, from some place on."""

from __future__ import annotations

from ascend_gguf.codegen import F16, I8, I16, I64, LANES, Kind, Value, canonical_half, load, widened


class Block:
    """All is little-endian, and may lie anywhere.

    Args:
        address: of bytes.
    """

    def __init__(self, address: Value) -> None:
        self._address = address

    def at(self, offset: int | Value) -> Block:
        """From byte ``offset`` on."""
        return Block(self._address + (offset if isinstance(offset, int) else offset.zext(I64)))

    def read(self, kind: Kind, offset: int, count: int = 1) -> Value:
        """``count`` whole numbers, or floats as float32."""
        return load(self._address + offset, count, kind)

    def byte(self, offset: int) -> Value:
        """A whole number of 8 bits."""
        return self.read(I8, offset)

    def bytes(self, offset: int, count: int = LANES) -> Value:
        """``count`` bytes."""
        return self.read(I8, offset, count)

    def half(self, offset: int) -> Value:
        """A float16 as float32, every NaN as the canonical one."""
        return widened(canonical_half(self.read(I16, offset)), F16)
