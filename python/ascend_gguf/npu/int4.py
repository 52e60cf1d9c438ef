"""Four bits a weight: Q4_0, Q4_1, Q4_K, IQ3_S and the ternary types."""

from __future__ import annotations

from ascend_gguf.npu.column_groups import ColumnGroups
from ascend_gguf.npu.groups import Packing
from ascend_gguf.npu.row_groups import RowGroups


class Int4(ColumnGroups):
    """A matrix as ``(code + offset) * scale``, codes from -8 to 7, in groups of 32."""

    name = "int4"
    packing = Packing(4, -8, 7, apart=True)


class Int4Rows(RowGroups):
    """As :class:`Int4`, by rows."""

    name = "int4, rows"
    packing = Packing(4, -8, 7)
