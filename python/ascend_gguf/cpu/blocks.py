"""The GGUF blocks themselves: every type, exactly, in as many bytes as in the file."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ascend_gguf.ggml_types import BlockType
from ascend_gguf.reader.chunked_read import BYTES_AT_ONCE, read_rows
from ascend_gguf.weights.layout import Layout, Piece, Weight

if TYPE_CHECKING:
    from ascend_gguf.memory.lazy_zeros import Neighbours

# Weights that kernels multiply at once.
_UNIT = 32


@dataclass(frozen=True)
class Part:
    """Matrices of one type, for the same rows of a weight, of one expert or more.

    Attributes:
        kind: the block type.
        first, rows: which rows.
        skip: how many weights of each row come before the weight's first column: the weight was
            cut inside a block.
        cols: how many columns they fill; those behind are zero.
        experts: the expert of each matrix; 0 for a weight of one matrix.
    """

    kind: BlockType
    first: int
    rows: int
    skip: int
    cols: int
    experts: tuple[int, ...]

    @property
    def name(self) -> str:
        """Of its tensor."""
        return f"{self.kind.name}_{self.first}_{self.skip}"

    @functools.cached_property
    def place(self) -> dict[int, int]:
        """Expert -> its matrix."""
        return {expert: i for i, expert in enumerate(self.experts)}


class Blocks(Layout):
    """For each :class:`Part` a tensor, uint8 ``[matrices, rows, row_bytes]``: rows as in the file.

    Where columns are cut inside a block, the blocks that cover them.  Where weights are multiplied
    with a factor, ``factors`` too: float32 ``[matrices, rows]``.
    """

    name = "blocks"

    def __init__(self, weight: Weight, parts: list[Part], tensors: dict[str, torch.Tensor]) -> None:
        super().__init__(weight.shape, weight.dtype, tensors)
        self.parts = parts

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if not weight.pieces:
            return "all of it is padding"
        if any(piece.col for piece in weight.pieces):
            return "its rows come in parts"
        for kind, _, blocks in map(_covering, weight.pieces):
            if kind.row_cols(blocks.shape[-1]) % _UNIT:
                return f"its columns, as they come, are not a multiple of {_UNIT}"
        is_unquantized = not any(kind.is_quantized for kind in weight.kinds)
        if is_unquantized and weight.experts is None:
            return "none of it is quantized"
        if any(len(places) != (weight.experts or 1) for _, places in _row_ranges(weight)):
            return "an expert lacks rows that others have"
        return None

    @classmethod
    def allocate(cls, weight: Weight) -> Blocks:
        parts, tensors = [], {}
        ranges = _row_ranges(weight)
        stops = [first for first, _ in ranges[1:]] + [weight.rows]
        for (first, places), stop in zip(ranges, stops, strict=True):
            for what in dict.fromkeys(places.values()):
                kind, skip, cols, nbytes = what
                experts = tuple(e for e, found in places.items() if found == what)
                part = Part(kind, first, stop - first, skip, cols, experts)
                # Rows of no piece stay zero: so are weights in blocks of zeros, of any type.
                tensors[part.name] = _memory().zeros((len(experts), part.rows, nbytes))
                parts.append(part)
        if any(piece.data.factor != 1 for piece in weight.pieces):
            factors = torch.ones(weight.experts or 1, weight.rows, device="cpu")
            for piece in weight.pieces:
                rows = slice(piece.row, piece.row + len(piece.data))
                factors[piece.expert, rows] = piece.data.factor
            tensors["factors"] = factors
        return cls(weight, parts, tensors)

    @property
    def factors(self) -> torch.Tensor | None:
        """What each row's products are multiplied with: float32 ``[matrices, rows]``; or None."""
        return self.tensors.get("factors")

    def tasks(self, piece: Piece) -> Iterator[Callable[[], None]]:
        kind, skip, blocks = _covering(piece)
        for part in self.parts:
            inside = part.first <= piece.row < part.first + part.rows
            if inside and (part.kind, part.skip) == (kind, skip) and piece.expert in part.place:
                matrix = self.tensors[part.name][part.place[piece.expert]]
                target = matrix.narrow(0, piece.row - part.first, len(blocks))
                step = max(1, BYTES_AT_ONCE // blocks.stride(0))
                for row in range(0, len(blocks), step):
                    some = slice(row, row + step)
                    yield functools.partial(_copy, blocks[some], target[some])

    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        from ascend_gguf.weights.block_tensor import BlockTensor

        first, stop, _ = rows.indices(self.shape[-2])
        values = torch.zeros(stop - first, self.shape[-1], dtype=torch.float32, device="cpu")
        for part in self.parts:
            begin, end = max(first, part.first), min(stop, part.first + part.rows)
            if expert in part.place and begin < end:
                matrix = self.tensors[part.name][part.place[expert]]
                blocks = matrix[begin - part.first : end - part.first]
                columns = (part.skip, part.skip + part.cols)
                target = values[begin - first : end - first, : part.cols]
                target.copy_(BlockTensor(blocks, part.kind.ggml_type, columns))
        return values if self.factors is None else values * self.factors[expert, rows, None]

    def has_nan(self) -> bool:
        from ascend_gguf.cpu.matmul import Matmul, Product  # imports a compiler

        if self.factors is not None and not self.factors.isfinite().all():
            return True
        # A product with ones is by far the fastest way to look at all weights.
        for part in self.parts:
            matrices = self.tensors[part.name]
            count, rows, nbytes = matrices.shape
            ones = torch.ones(1, part.kind.row_cols(nbytes), dtype=torch.float32, device="cpu")
            sums = ones.new_empty(count, rows)
            products = [Product(i, 0, i, 1) for i in range(count)]
            matmul = Matmul(part.kind, matrices, products, ones.dtype, sums.dtype, rows)
            matmul.run(ones, sums, threads=1)  # others are loading meanwhile
            if sums.isnan().any():
                return True
        return False

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of a single matrix: ids ``[n]`` to ``[n, cols]`` of :attr:`dtype`.

        Raises:
            IndexError: a row that there is not; a negative one is not counted from the end.
        """
        from ascend_gguf.decoders.dequantize import dequantize  # imports a compiler

        if len(ids) and not (0 <= ids.min() and ids.max() < self.shape[0]):
            raise IndexError(f"rows {ids.min()} to {ids.max()} of {self.shape[0]}")
        out = torch.zeros(len(ids), self.shape[1], dtype=self.dtype, device="cpu")
        for part in self.parts:
            places: slice | torch.Tensor = slice(None)
            if len(self.parts) > 1:
                places = ((ids >= part.first) & (ids < part.first + part.rows)).nonzero()[:, 0]
            blocks = self.tensors[part.name][0][ids[places] - part.first]
            dtype = self.dtype if self.factors is None else torch.float32
            values = dequantize(blocks, part.kind.ggml_type, dtype)
            values = values[:, part.skip : part.skip + part.cols]
            if self.factors is not None:
                values = values * self.factors[0, ids[places], None]
            out[:, : part.cols][places] = values.to(self.dtype)
        return out


@functools.cache
def _memory() -> Neighbours:
    """Where the blocks of all weights lie."""
    from ascend_gguf.memory.lazy_zeros import Neighbours

    return Neighbours()


def _copy(blocks: torch.Tensor, target: torch.Tensor) -> None:
    for rows, read in read_rows(blocks):
        target[rows] = torch.as_tensor(read)


#: Expert -> the block type of some rows, how many weights come before them, how many they have,
#: and bytes in a row.
_Places = dict[int, tuple[BlockType, int, int, int]]


def _row_ranges(weight: Weight) -> list[tuple[int, _Places]]:
    """The first row of each range of rows that are of a piece each, and what those are.

    A range ends where the next begins.  Neighbours with the same places are one.
    """
    by_row: dict[int, _Places] = {}
    for piece in sorted(weight.pieces, key=lambda piece: (piece.row, piece.expert)):
        kind, skip, blocks = _covering(piece)
        what = kind, skip, piece.data.shape[-1], blocks.shape[-1]
        by_row.setdefault(piece.row, {})[piece.expert] = what
    ranges: list[tuple[int, _Places]] = []
    for row, places in by_row.items():
        if not ranges or places != ranges[-1][1]:
            ranges.append((row if ranges else 0, places))
    return ranges


def _covering(piece: Piece) -> tuple[BlockType, int, torch.Tensor]:
    """A piece's type, the blocks that cover it last, and how many weights of those come before."""
    blocks, skip = piece.data.covering(_UNIT)
    return piece.kind, skip, blocks
