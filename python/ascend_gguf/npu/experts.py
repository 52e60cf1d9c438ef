"""Experts for the Ascend grouped product, which takes codes of 4 bits, packed along N.

The codes of a few rows are made by :mod:`.conversion`, a byte each, then transposed and packed.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import ClassVar

import torch

from ascend_gguf.codegen import (
    I8,
    I32,
    I64,
    LANES,
    Kernel,
    Value,
    load,
    local,
    loop,
    pointer,
    store,
)
from ascend_gguf.npu.conversion import convert
from ascend_gguf.npu.groups import Packing
from ascend_gguf.npu.int4 import nibbles
from ascend_gguf.npu.nibble_planes import PLANES, merged
from ascend_gguf.npu.row_groups import packing_unsupported_reason
from ascend_gguf.weights.block_tensor import BlockTensor
from ascend_gguf.weights.layout import Layout, Piece, Weight

#: Codes in an element of ``packed``.
_EIGHT = 8

# Rows made at once: with 16 elements of ``packed`` a row of them fills a cache line.
_WORDS = 16
_ROWS = _WORDS * _EIGHT

# Bytes between made rows.
_PADDING = 64

#: The most experts, and one more than the longest row, that the operator takes.
_EXPERTS, _TOO_LONG = 1024, 65536


class Grouped(Layout):
    """Base of :class:`GroupedInt4` and :class:`GroupedNibblePlanes`: ``K`` inputs, ``N`` outputs.

    ``packed``: int32 ``[experts, K, N / 8]``, eight codes each, the first in the lowest bits; of
    planes ``[experts, 2 * K, N / 8]``.
    ``scale``: ``dtype [experts, K / group, N]``.
    ``offset``: as ``scale``; where it is the same everywhere, one tensor for all layers of a shape,
    as the operator always wants one.
    """

    #: How codes are made, a byte each.
    packing: ClassVar[Packing]

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if weight.experts is None:
            return "it has no experts"
        planes = 2 if cls.packing.planes else 1
        if weight.experts > _EXPERTS or max(planes * weight.cols, weight.rows) >= _TOO_LONG:
            return f"{weight.shape} is more than the operator takes"
        if any(piece.row % _EIGHT or len(piece.data) % _EIGHT for piece in weight.pieces):
            return f"its rows are not multiples of {_EIGHT}"
        return packing_unsupported_reason(weight, cls.packing)

    @classmethod
    def allocate(cls, weight: Weight) -> Grouped:
        experts, rows, cols = weight.shape
        planes = 2 if cls.packing.planes else 1
        packed = torch.zeros(
            experts, planes * cols, rows // _EIGHT, dtype=torch.int32, device="cpu"
        )
        scale = torch.zeros(
            experts, cols // cls.packing.group, rows, dtype=weight.dtype, device="cpu"
        )
        layout = cls(weight.shape, weight.dtype, {"packed": packed, "scale": scale})
        constants = {cls.packing.constant_offset(kind) for kind in weight.kinds}
        constant = constants.pop() if len(constants) == 1 else None
        if constant is not None:
            layout.shared["offset"] = _constant(constant, scale)
        else:
            layout.tensors["offset"] = torch.zeros_like(scale)
        return layout

    @property
    def offset(self) -> torch.Tensor:
        """The offsets, its own or shared."""
        return (self.tensors | self.shared)["offset"]

    def to(self, device: torch.device) -> Grouped:
        super().to(device)
        for name, tensor in self.shared.items():
            value = tensor.flatten()[0].item()
            self.shared[name] = _constant(value, self.tensors["scale"])
        return self

    def tasks(self, piece: Piece) -> Iterator[Callable[[], None]]:
        for row in range(0, len(piece.data), _ROWS):
            rows = piece.data.rows(row, row + _ROWS)
            yield functools.partial(self._put, rows, piece.expert, piece.row + row)

    def _put(self, matrix: BlockTensor, expert: int, row: int) -> None:
        rows, cols = matrix.shape
        # Rows a power of two apart would share few places of the cache.
        codes = torch.empty(rows, cols + _PADDING, dtype=torch.uint8)[:, :cols]
        scale = torch.empty(rows, cols // self.packing.group, dtype=self.dtype)
        own = self.tensors.get("offset")
        offset = None if own is None else torch.empty_like(scale)
        convert(matrix, self.packing, codes, scale, offset)
        target = self.tensors["packed"][expert, :, row // _EIGHT :]
        transpose = transposer(self.packing.planes, whole=rows == _ROWS)
        places = [value for t in (codes, target) for value in (t.data_ptr(), t.stride(0))]
        transpose(*places, rows // _EIGHT, cols)
        self.tensors["scale"][expert, :, row : row + rows] = scale.t()
        if own is not None and offset is not None:
            own[expert, :, row : row + rows] = offset.t()

    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        words = slice(rows.start // _EIGHT, -(-rows.stop // _EIGHT))
        values = nibbles(self.tensors["packed"][expert, :, words].cpu(), torch.float32)
        values = values[:, rows.start % _EIGHT :][:, : rows.stop - rows.start]
        scale, offset = (
            tensor[expert, :, rows].cpu().float().unsqueeze(1)
            for tensor in (self.tensors["scale"], self.offset)
        )
        values = values.unflatten(0, (len(scale), -1)) + offset
        if self.packing.planes:
            values = merged(values.unflatten(1, (2, 16)), 1)
        return (values * scale).flatten(0, 1).t()


class GroupedInt4(Grouped):
    """Experts in four bits: Q4_0, Q4_1, Q4_K, IQ3_S and the ternary types."""

    name = "int4, experts"
    packing = Packing(4, -8, 7, apart=True)


class GroupedNibblePlanes(Grouped):
    """Experts in eight bits: see :class:`.planes.NibblePlanes`."""

    name = "planes, experts"
    packing = replace(PLANES, apart=True)


#: Narrowest first.
EXPERT_LAYOUTS: tuple[type[Layout], ...] = (GroupedInt4, GroupedNibblePlanes)


_constants: weakref.WeakValueDictionary[tuple, torch.Tensor] = weakref.WeakValueDictionary()


def _constant(value: float, like: torch.Tensor) -> torch.Tensor:
    """A tensor of one value everywhere, the same one for all that ask."""
    key = (value, tuple(like.shape), like.dtype, like.device)
    constant = _constants.get(key)
    if constant is None:
        constant = _constants[key] = torch.full_like(like, value)
    return constant


@functools.cache
def transposer(planes: bool, whole: bool) -> Kernel:
    """Packs rows of bytes along the rows; compiled on first use.

    Arguments: address and bytes from row to row of the codes ``[rows, cols]``; address and
    elements from row to row of the result, int32 ``[cols, rows / 8]`` or, of planes, twice as many
    rows; ``rows / 8``, at most 16 and if ``whole`` exactly so many; ``cols``, a multiple of 16.
    """
    lines = LANES * (2 if planes else 1)

    def transpose(
        tile: Value,  # noqa: ARG001
        x: Value,
        x_stride: Value,
        y: Value,
        y_stride: Value,
        words: Value,
        cols: Value,
    ) -> None:
        # Whole lines of the cache are put together here: rows of the result may share places of it.
        aside = local(I32, lines * _WORDS)
        for col in loop(0, cols, LANES):
            first_line = col * 2 if planes else col

            def target(line: int, first_line: Value = first_line) -> Value:
                return y + (first_line + line) * y_stride

            for word in loop(0, words):
                first = x + (col + word * _EIGHT * x_stride)
                rows = [load(first + x_stride * i, LANES) for i in range(_EIGHT)]
                # Of planes the high codes first.
                halves = [[(row + 8) >> 4 for row in rows], rows] if planes else [rows]
                packed = [lane for half in halves for lane in _eight_in_one(half).lanes()]
                for line, code in enumerate(packed):
                    store((aside + line * _WORDS if whole else target(line)) + word, code)
            for line in range(lines) if whole else ():
                store(target(line), load(aside + line * _WORDS, _WORDS))

    return Kernel(
        f"transpose_{'planes' if planes else 'int4'}_{'whole' if whole else 'part'}",
        transpose,
        x=pointer(I8),
        x_stride=I64,
        y=pointer(I32),
        y_stride=I64,
        words=I64,
        cols=I64,
    )


def _eight_in_one(rows: list[Value]) -> Value:
    """The low 4 bits of each of eight codes in 32 bits, the first in the lowest."""
    kept = [row & 15 for row in rows]
    pairs = [kept[i] | kept[i + 1] << 4 for i in range(0, _EIGHT, 2)]
    packed = pairs[0].zext(I32)
    for i, pair in enumerate(pairs[1:], start=1):
        packed = packed | pair.zext(I32) << 8 * i
    return packed
