"""Eight bits a weight, as two planes of four, for operators of four bits."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.npu.column_groups import ColumnGroups
from ascend_gguf.npu.groups import GROUP, Packing
from ascend_gguf.npu.row_groups import RowGroups
from ascend_gguf.weights.layout import Weight

#: A code of 8 bits is ``16 high + low``; this covers -136 to 119.
PLANES = Packing(8, -136, 119, group=16, planes=True)

#: By columns.
PLANES_APART = replace(PLANES, apart=True)
WIDE_PLANES_APART = replace(PLANES_APART, group=GROUP)

# What the operator's template for few inputs asks of their number and of outputs.
_FEW_INPUTS, _ALIGNED = 8, 64


class NibblePlanes(ColumnGroups):
    """A matrix as ``(high + offset) * scale + (low + offset) * scale / 16``, both from -8 to 7.

    To the operator it is a matrix of four bits with twice the inputs: the high codes of 16 weights,
    then the low ones, are a group of 32.  Its input is twice as wide (:func:`.codes.doubled`).  So
    types with a scale for 16 weights are exact in operators with groups of 32.
    """

    name = "planes"
    packing = PLANES_APART


class WidePlanes(ColumnGroups):
    """As :class:`NibblePlanes`, but of 32 weights: a group of 64 to the operator.

    On Atlas A2 and A3 products of up to 8 inputs with it take a template that reads the codes as
    they are, where others write all weights to memory first, at every call.  So CANN's tiling of
    ``WeightQuantBatchMatmulV2``: four bits, groups of 64 or 128, no transposed weight, outputs a
    multiple of 64, inputs no more than an eighth of the group.
    """

    name = "wide planes"
    packing = WIDE_PLANES_APART
    #: The most inputs of the fast template.
    most_inputs = _FEW_INPUTS

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if weight.rows % _ALIGNED:
            return f"{weight.rows} rows are not a multiple of {_ALIGNED}"
        return super().unsupported_reason(weight)


class PlanesRows(RowGroups):
    """As :class:`NibblePlanes`, by rows."""

    name = "planes, rows"
    packing = PLANES
