"""Packed weights by rows, as in the file: for an embedding, which gathers whole rows.

Where it is the output matrix too, it is multiplied by its transposed view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from ascend_gguf.npu.codes import unpacked
from ascend_gguf.npu.packed_groups import Operands, PackedGroups, groups_unsupported_reason
from ascend_gguf.weights.layout import Piece, Weight


class RowGroups(PackedGroups):
    """Base of :class:`.int4.Int4Rows`, :class:`.int8.Int8Rows`, :class:`.nibble_planes.PlanesRows`.

    ``packed``: int32 ``[rows, K / 8]``, eight codes each, the first in the lowest bits, or int8
    ``[rows, K]``.  ``K`` is ``cols``, or twice as many where there are planes.
    ``scale``, ``offset``: ``dtype [rows, cols / group]``.
    """

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if weight.experts is not None:
            return "it has experts"
        return groups_unsupported_reason(weight, cls.packing)

    @classmethod
    def _sizes(cls, weight: Weight, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        nbytes = weight.cols * cls.packing.bits // 8
        packed = rows, nbytes // cls.packing.packed_dtype.itemsize
        return packed, (rows, weight.cols // cls.packing.group)

    def _operands(self, rows: slice, tensors: dict[str, torch.Tensor]) -> Operands:
        offset = tensors.get("offset")
        packed, scale = tensors["packed"].t(), tensors["scale"].t()
        return Operands(rows, packed, scale, None if offset is None else offset.t())

    def tasks(self, piece: Piece) -> Iterator[Callable[[], None]]:
        from ascend_gguf.npu.conversion import conversions  # imports a compiler

        for matrix, rows, tensors in self.places(piece):
            offset = tensors.get("offset")
            yield from conversions(
                matrix,
                self.packing,
                tensors["packed"].view(torch.uint8)[rows],
                tensors["scale"][rows],
                None if offset is None else offset[rows],
            )

    def decoded_rows(self, rows: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Weights ``[n, cols]`` of a dtype, from ``n`` rows of each tensor of a part."""
        codes = unpacked(rows["packed"], dtype)
        return self.decoded(codes, rows["scale"], rows.get("offset"))

    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        matrices = []
        for here, tensors, _ in self.within(rows):
            found = {name: tensor[here].cpu() for name, tensor in tensors.items()}
            found = {name: t if name == "packed" else t.float() for name, t in found.items()}
            matrices.append(self.decoded_rows(found, torch.float32))
        return torch.cat(matrices)
