"""What the packed layouts of an NPU share: codes, scales and offsets; parts of long matrices."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

import torch

from ascend_gguf.memory.huge_pages import use_huge_pages
from ascend_gguf.npu.codes import plane_factors
from ascend_gguf.npu.groups import GROUP, Packing
from ascend_gguf.weights.layout import Layout, Piece, Weight

if TYPE_CHECKING:
    from ascend_gguf.weights.block_tensor import BlockTensor

#: The most rows or columns that the Ascend operators take.
LONGEST = 65535

# What the operators' fast templates ask the number of outputs to be a multiple of.
_ALIGNED = 64

_Layout = TypeVar("_Layout", bound="PackedGroups")


@dataclass(frozen=True, slots=True)
class Operands:
    """What ``npu_weight_quant_batchmatmul`` takes for some rows of a matrix, its outputs.

    Attributes:
        rows: which.
        packed, scale, offset: ``[K, N]``, eight codes to an element or one, and ``[K / group, N]``;
            all contiguous, or all transposed views.  Offset is None where all offsets are 0.
    """

    rows: slice
    packed: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor | None


class PackedGroups(Layout):
    """Base of :class:`.row_groups.RowGroups` and :class:`.column_groups.ColumnGroups`.

    ``packed``, ``scale`` and, where not all offsets are 0, ``offset``.  A matrix of more rows than
    the operators take has several of each: ``packed_0``, ``packed_1`` and so on.
    """

    #: How codes are kept.
    packing: ClassVar[Packing]

    #: What the operator takes, on the device.
    operands: list[Operands]
    #: Of planes, for :func:`.codes.doubled`.
    factors: torch.Tensor

    @classmethod
    def allocate(cls: type[_Layout], weight: Weight) -> _Layout:
        parts, tensors = parts_of(weight.rows), {}
        has_offset = cls._has_offset(weight)
        for i, part in enumerate(parts):
            end = f"_{i}" if len(parts) > 1 else ""
            packed, scale = cls._sizes(weight, part.stop - part.start)
            tensors[f"packed{end}"] = _zeros(packed, cls.packing.packed_dtype)
            tensors[f"scale{end}"] = _zeros(scale, weight.dtype)
            if has_offset:
                tensors[f"offset{end}"] = _zeros(scale, weight.dtype)
        return cls(weight.shape, weight.dtype, tensors)

    @classmethod
    @abc.abstractmethod
    def _sizes(cls, weight: Weight, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The shapes of ``packed`` and ``scale`` for some of the rows."""

    @classmethod
    def _has_offset(cls, weight: Weight) -> bool:
        return any(cls.packing.constant_offset(kind) != 0 for kind in weight.kinds)

    @property
    def parts(self) -> list[tuple[slice, dict[str, torch.Tensor]]]:
        """Rows of the matrix, and their tensors."""
        parts = parts_of(self.shape[-2])
        if len(parts) == 1:
            return [(parts[0], self.tensors)]
        names = dict.fromkeys(name.partition("_")[0] for name in self.tensors)
        return [
            (part, {name: self.tensors[f"{name}_{i}"] for name in names})
            for i, part in enumerate(parts)
        ]

    def within(self, rows: slice) -> Iterator[tuple[slice, dict[str, torch.Tensor], int]]:
        """Of each part its share of the rows, from its first on; its tensors; its first row."""
        for part, tensors in self.parts:
            first, last = max(rows.start, part.start), min(rows.stop, part.stop)
            if first < last:
                yield slice(first - part.start, last - part.start), tensors, part.start

    def places(self, piece: Piece) -> Iterator[tuple[BlockTensor, slice, dict[str, torch.Tensor]]]:
        """Rows of a piece, and where they go: rows of a part, and its tensors."""
        for rows, tensors, start in self.within(slice(piece.row, piece.row + len(piece.data))):
            first = start - piece.row
            yield piece.data.rows(first + rows.start, first + rows.stop), rows, tensors

    def to(self: _Layout, device: torch.device) -> _Layout:
        super().to(device)
        if self.packing.planes:
            self.factors = plane_factors(self.dtype, device, self.packing.group)
        self.operands = [self._operands(rows, tensors) for rows, tensors in self.parts]
        return self

    @abc.abstractmethod
    def _operands(self, rows: slice, tensors: dict[str, torch.Tensor]) -> Operands:
        """Of a part."""

    def decoded(
        self, codes: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor | None
    ) -> torch.Tensor:
        """Weights ``[n, cols]``: of codes ``[n, K]``, scales and offsets ``[n, cols / group]``."""
        values = codes.unflatten(-1, (-1, self.packing.operator_group))
        if offset is not None:
            values = values + offset.unsqueeze(-1)
        if self.packing.planes:
            high, low = values.unflatten(-1, (2, -1)).unbind(-2)
            values = high + low / 16
        return (values * scale.unsqueeze(-1)).flatten(1)


def parts_of(rows: int) -> list[slice]:
    """As few parts of a matrix as the operators take, about equally long."""
    step = -(-rows // -(-rows // LONGEST))
    if step < rows:
        step = -(-step // _ALIGNED) * _ALIGNED
    return [slice(start, min(rows, start + step)) for start in range(0, rows, step)]


def groups_unsupported_reason(weight: Weight, packing: Packing) -> str | None:
    """Why codes in groups along the columns cannot hold the weight."""
    for piece in weight.pieces:
        reason = packing.unsupported_reason(piece.kind)
        if reason is not None:
            return reason
        if any(column % GROUP for column in piece.data.columns):
            return f"its columns are cut at {piece.data.columns}, not on multiples of {GROUP}"
        if piece.data.shape[-1] != weight.cols:
            return "its rows come in parts"
    longest = LONGEST // (2 if packing.planes else 1)
    if weight.cols % GROUP or not GROUP < weight.cols <= longest:
        return f"{weight.cols} columns are not a multiple of {GROUP} from {2 * GROUP} to {longest}"
    return None


def _zeros(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    zeros = torch.zeros(shape, dtype=dtype, device="cpu")
    use_huge_pages(zeros)
    return zeros
