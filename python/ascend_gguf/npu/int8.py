"""Eight bits a weight, in groups of 32."""

from __future__ import annotations

from ascend_gguf.npu.column_groups import ColumnGroups
from ascend_gguf.npu.groups import Packing
from ascend_gguf.npu.row_groups import RowGroups

_PACKING = Packing(8, -128, 127)


class Int8(ColumnGroups):
    """A matrix as ``(code + offset) * scale``, codes from -128 to 127."""

    name = "int8"
    packing = _PACKING


class RequantizedInt8(ColumnGroups):
    """As :class:`Int8`, also for types with a scale for 16 weights: those are rounded to new codes.

    docs/weight_layouts.md has the error that this adds.
    """

    name = "int8, requantized"
    packing = Packing(8, -128, 127, requantizes=True)


class Int8Rows(RowGroups):
    """As :class:`Int8`, by rows."""

    name = "int8, rows"
    packing = _PACKING
