"""What a layout is: the way a layer's weight lies on the device.

A weight is ``[rows, cols]``, outputs by inputs, or ``[experts, rows, cols]``.  It comes as
:class:`Piece` s, slices of tensors of the file.  The first of a kernel's layouts that can hold all
of them is allocated once, and filled piece by piece straight from the blocks.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import torch

from ascend_gguf.ggml_types import BlockType
from ascend_gguf.thread_pool import in_parallel

if TYPE_CHECKING:
    from ascend_gguf.weights.block_tensor import BlockTensor

#: A reason of several layouts, which is not worth a line in the log.
NOT_QUANTIZED = "a part is not quantized"


@dataclass(frozen=True, slots=True)
class Piece:
    """A slice of a weight: where it goes and what comes there.

    Attributes:
        expert, row, col: where its first weight goes; expert is 0 for a weight of one matrix.
        data: ``[rows, cols]``; a view, never a copy.
    """

    expert: int
    row: int
    col: int
    data: BlockTensor

    @property
    def kind(self) -> BlockType:
        """The block type; floats have one too."""
        return self.data.block_type


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as the file gives it: all that a layout needs to know to hold it.

    Attributes:
        experts: number of matrices, or None for a single one, without that dimension.
        rows, cols: the shape of a matrix.
        dtype: what the model computes in: float16, bfloat16 or float32.
        pieces: what fills it.  Rows of no piece are zero.
    """

    experts: int | None
    rows: int
    cols: int
    dtype: torch.dtype
    pieces: Sequence[Piece] = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """``[rows, cols]`` or ``[experts, rows, cols]``."""
        matrix = (self.rows, self.cols)
        return matrix if self.experts is None else (self.experts, *matrix)

    @property
    def kinds(self) -> set[BlockType]:
        """The block types of the pieces."""
        return {piece.kind for piece in self.pieces}


class Layout(abc.ABC):
    """A weight in place.

    A subclass says in its docstring which tensors it holds, with shapes and dtypes.

    Attributes:
        name: what the log calls the layout.
        shape: of the weight, ``[rows, cols]`` or ``[experts, rows, cols]``.
        dtype: what the model computes in.
        tensors: what lies on the device, by name.
        shared: more of them, that other weights have too.
        unsupported: why each layout that would have been preferred could not be used, by name.
        source: the weight it was filled from, and the layouts that come next.  Only while a model
            loads: see :meth:`next`.
    """

    name: ClassVar[str]

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, tensors: dict[str, torch.Tensor]
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.tensors = tensors
        self.shared: dict[str, torch.Tensor] = {}
        self.unsupported: dict[str, str] = {}
        self.source: tuple[Weight, Sequence[type[Layout]]] | None = None

    @classmethod
    @abc.abstractmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        """Why this layout cannot hold the weight, as a clause for the log; None if it can."""

    @classmethod
    @abc.abstractmethod
    def allocate(cls, weight: Weight) -> Layout:
        """A layout of all zeros for the weight, on the host."""

    @abc.abstractmethod
    def tasks(self, piece: Piece) -> Iterable[Callable[[], object]]:
        """What puts a piece into place, each part of it worth a thread.  It is on the host."""

    def put(self, piece: Piece) -> None:
        """Convert a piece into place.  The layout is on the host."""
        in_parallel(self.tasks(piece))

    @abc.abstractmethod
    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        """Rows of a matrix, float32 ``[n, cols]``, decoded on the host."""

    def dequantize(self) -> torch.Tensor:
        """All weights: float32 of :attr:`shape`, on the host."""
        everything = slice(0, self.shape[-2])
        matrices = [self.sample(everything, expert) for expert in range(self.experts)]
        return torch.stack(matrices).view(self.shape)

    def has_nan(self) -> bool:
        """Whether a weight is NaN."""
        return any(bool(t.isnan().any()) for t in self.tensors.values() if t.is_floating_point())

    def to(self, device: torch.device) -> Layout:
        """Move the tensors, and return self."""
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensor.to(device)
        return self

    def next(self, reason: str, first: type[Layout] | None = None) -> Layout:
        """The same weight in the next layout that can hold it, converted again, on the device.

        Args:
            reason: why this one cannot be used.
            first: the first to consider of those that come next.

        Raises:
            ValueError: no layout comes next, or :attr:`source` is gone.
        """
        if self.source is None:
            raise ValueError(f"{self.name}: what it was filled from is not known any more")
        weight, layouts = self.source
        layout = allocated(weight, layouts[0 if first is None else layouts.index(first) :])
        layout.unsupported = {**self.unsupported, self.name: reason, **layout.unsupported}
        for piece in weight.pieces:
            layout.put(piece)
        return layout.to(self.device)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(iter(self.tensors.values())).device

    @property
    def experts(self) -> int:
        """Number of matrices."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def nbytes(self) -> int:
        """Bytes on the device, without what is shared."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def allocated(weight: Weight, layouts: Sequence[type[Layout]]) -> Layout:
    """The first of ``layouts`` that can hold the weight, all zeros, on the host.

    Raises:
        ValueError: none of the layouts can; names the reason of each.
    """
    unsupported: dict[str, str] = {}
    for i, layout in enumerate(layouts):
        reason = layout.unsupported_reason(weight)
        if reason is None:
            empty = layout.allocate(weight)
            empty.unsupported = unsupported
            empty.source = weight, layouts[i + 1 :]
            return empty
        unsupported[layout.name] = reason
    raise ValueError("; ".join(f"{name}: {why}" for name, why in unsupported.items()))
