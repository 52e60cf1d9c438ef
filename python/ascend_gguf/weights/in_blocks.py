"""What any matrix in GGUF blocks has, whether its blocks are there or only described."""

from __future__ import annotations

from typing import Any

from ascend_gguf.ggml_types import BlockType


class InBlocks:
    """Rows of blocks, of which a range of columns is shown.

    Attributes:
        blocks: uint8 ``[..., rows, row_bytes]``: whole rows, also where ``columns`` is narrower.
        block_type: the block type.
        columns: the range of weights of each row, ``(start, stop)``.
        factor: what every weight is multiplied with, beside the scales of its block.
    """

    blocks: Any
    block_type: BlockType
    columns: tuple[int, int]
    factor: float

    def covering(self, unit: int = 1) -> tuple[Any, int]:
        """The blocks that cover the columns, and how many weights come before the first column.

        Args:
            unit: the blocks begin and end at a multiple of so many weights; a power of two.
        """
        unit = max(unit, self.block_type.block_size)
        start, stop = self.columns
        first, last = start // unit * unit, -(-stop // unit) * unit
        row_bytes = self.block_type.row_bytes
        return self.blocks[..., row_bytes(first) : row_bytes(last)], start - first
