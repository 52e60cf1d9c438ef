"""Packed weights by columns, ``[K, N]``: for matrices that are only multiplied with.

It is the form that CANN recommends for weights in groups: contiguous, not transposed.  The codes
of some rows are made by :mod:`.conversion`, a byte each, then transposed and packed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from ascend_gguf.npu.codes import unpacked
from ascend_gguf.npu.groups import ROWS_OF_WORD
from ascend_gguf.npu.packed_groups import Operands, PackedGroups, groups_unsupported_reason
from ascend_gguf.thread_pool import WEIGHTS_PER_PIECE
from ascend_gguf.weights.layout import Piece, Weight

if TYPE_CHECKING:
    from ascend_gguf.weights.block_tensor import BlockTensor

# Bytes between made rows: rows a power of two apart would share few places of the cache.
_PADDING = 64


class ColumnGroups(PackedGroups):
    """Base of the layouts of linear layers and of experts: ``K`` inputs, ``N`` outputs.

    ``packed``: int32 ``[K, N / 8]``, eight codes each, the first in the lowest bits, or int8
    ``[K, N]``.  ``K`` is ``cols``, or twice as many where there are planes.
    ``scale``, ``offset``: ``dtype [cols / group, N]``.
    Of experts all have a first dimension more.
    """

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if weight.experts is not None:
            return "it has experts"
        return cls._columns_unsupported_reason(weight)

    @classmethod
    def _columns_unsupported_reason(cls, weight: Weight) -> str | None:
        if cls.packing.code_bits == 4:
            eight = ROWS_OF_WORD[4]
            if weight.rows % eight or any(piece.row % eight for piece in weight.pieces):
                return f"its rows are not multiples of {eight}"
        return groups_unsupported_reason(weight, cls.packing)

    @classmethod
    def _sizes(cls, weight: Weight, rows: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        experts = () if weight.experts is None else (weight.experts,)
        inputs = weight.cols * (2 if cls.packing.planes else 1)
        elements = rows * cls.packing.code_bits // 8 // cls.packing.packed_dtype.itemsize
        return (*experts, inputs, elements), (*experts, weight.cols // cls.packing.group, rows)

    def _operands(self, rows: slice, tensors: dict[str, torch.Tensor]) -> Operands:
        return Operands(rows, tensors["packed"], tensors["scale"], tensors.get("offset"))

    def tasks(self, piece: Piece) -> Iterator[Callable[[], None]]:
        from ascend_gguf.npu.transpose import rows_of_line

        line = rows_of_line(4)
        # Long enough that lines of the result follow each other, short enough for the cache.
        step = max(1, 2 * WEIGHTS_PER_PIECE // self.shape[-1] // line) * line
        for matrix, rows, tensors in self.places(piece):
            own = {name: self._matrix(tensor, piece.expert) for name, tensor in tensors.items()}
            for row in range(0, len(matrix), step):
                some = matrix.rows(row, row + step)
                yield functools.partial(self._put, some, own, rows.start + row)

    @staticmethod
    def _matrix(tensor: torch.Tensor, expert: int) -> torch.Tensor:
        return tensor.view(-1, *tensor.shape[-2:])[expert]

    def _put(self, matrix: BlockTensor, tensors: dict[str, torch.Tensor], row: int) -> None:
        """Convert rows of a matrix to columns from ``row`` on."""
        from ascend_gguf.npu.conversion import convert  # as below: imports a compiler
        from ascend_gguf.npu.transpose import transposer

        rows, cols = matrix.shape
        packing, columns = self.packing, slice(row, row + rows)
        of_word = ROWS_OF_WORD[packing.code_bits]
        # Of 4 bits the last word of a piece may be shared with rows of no piece, which are 0.
        rest = rows % of_word
        more = of_word - rest if rest and packing.code_bits == 4 else 0
        codes = torch.empty(rows + more, cols + _PADDING, dtype=torch.uint8, device="cpu")
        codes[rows:] = 0
        codes = codes[:, :cols]
        scale = torch.empty(rows, cols // packing.group, dtype=self.dtype, device="cpu")
        offset = torch.empty_like(scale) if "offset" in tensors else None
        convert(matrix, packing, codes[:rows], scale, offset)
        target = tensors["packed"].view(torch.uint8)[:, row * packing.code_bits // 8 :]
        transpose = transposer(packing.code_bits, packing.group if packing.planes else 0)
        transpose(codes, target, len(codes) // of_word, cols)
        if rest and not more:
            target[:, rows - rest : rows] = codes[rows - rest :].t()
        tensors["scale"][:, columns] = scale.t()
        if offset is not None:
            tensors["offset"][:, columns] = offset.t()

    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        eight = ROWS_OF_WORD[4] if self.packing.code_bits == 4 else 1
        matrices = []
        for here, tensors, _ in self.within(rows):
            own = {name: self._matrix(t, expert) for name, t in (tensors | self.shared).items()}
            words = slice(here.start // eight, -(-here.stop // eight))
            codes = unpacked(own["packed"][:, words].cpu().contiguous(), torch.float32)
            codes = codes[:, here.start % eight :][:, : here.stop - here.start]
            scale, offset = (
                own[name][:, here].cpu().float().t() if name in own else None
                for name in ("scale", "offset")
            )
            assert scale is not None
            matrices.append(self.decoded(codes.t(), scale, offset))
        return torch.cat(matrices)
