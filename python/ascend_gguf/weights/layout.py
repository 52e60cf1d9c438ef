"""What a resident form is: the way a layer's weights lie on the device once they are loaded.

A weight is ``[rows, cols]``, outputs by inputs, or ``[experts, rows, cols]``.  It arrives in
:class:`Piece` s, slices of tensors of the file; the first of a kernel's forms that can hold all
of them is allocated once and filled piece by piece, straight from the blocks.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from ascend_gguf.ggml_types import BlockType
from ascend_gguf.thread_pool import in_parallel
from ascend_gguf.weights.block_tensor import BlockTensor


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
        """The block type; plain numbers have one too."""
        return self.data.block_type


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as the file gives it: all that a form needs to know to hold it.

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


class Form(abc.ABC):
    """A weight in place.

    A subclass says in its docstring which tensors it holds, with shapes and dtypes.

    Attributes:
        name: what the log calls the form.
        shape: of the weight, ``[rows, cols]`` or ``[experts, rows, cols]``.
        dtype: what the model computes in.
        tensors: what lies on the device, by name.
        shared: more of them, that other weights have too.
        obstacles: of the forms that would have been preferred, by name: what was in the way.
    """

    name: ClassVar[str]

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, tensors: dict[str, torch.Tensor]
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.tensors = tensors
        self.shared: dict[str, torch.Tensor] = {}
        self.obstacles: dict[str, str] = {}

    @classmethod
    @abc.abstractmethod
    def obstacle(cls, weight: Weight) -> str | None:
        """Why this form cannot hold the weight, as a clause for the log; None if it can."""

    @classmethod
    @abc.abstractmethod
    def allocate(cls, weight: Weight) -> Form:
        """A form of all zeros for the weight, on the host."""

    @abc.abstractmethod
    def tasks(self, piece: Piece) -> Iterable[Callable[[], object]]:
        """What puts a piece into place, each part of it worth a thread; the form is on the host."""

    def put(self, piece: Piece) -> None:
        """Convert a piece into place.  The form is on the host."""
        in_parallel(self.tasks(piece))

    @abc.abstractmethod
    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        """Rows of a matrix as numbers, float32 ``[n, cols]``, decoded on the host."""

    def dequantize(self) -> torch.Tensor:
        """The numbers this stands for: float32 of :attr:`shape`, on the host."""
        everything = slice(0, self.shape[-2])
        matrices = [self.sample(everything, expert) for expert in range(self.experts)]
        return torch.stack(matrices).view(self.shape)

    def has_nan(self) -> bool:
        """Whether some of the weights are not numbers."""
        return any(bool(t.isnan().any()) for t in self.tensors.values() if t.is_floating_point())

    def to(self, device: torch.device) -> Form:
        """Move the tensors, and return self."""
        for name, tensor in self.tensors.items():
            self.tensors[name] = tensor.to(device)
        return self

    @property
    def experts(self) -> int:
        """Number of matrices."""
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def nbytes(self) -> int:
        """Bytes on the device, without what is shared."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits on the device for each weight."""
        return 8 * self.nbytes / torch.Size(self.shape).numel()


def allocated(weight: Weight, forms: Sequence[type[Form]]) -> Form:
    """The first of ``forms`` that can hold the weight, all zeros, on the host.

    Raises:
        ValueError: none of the forms can; names the obstacle of each.
    """
    obstacles: dict[str, str] = {}
    for form in forms:
        obstacle = form.obstacle(weight)
        if obstacle is None:
            empty = form.allocate(weight)
            empty.obstacles = obstacles
            return empty
        obstacles[form.name] = obstacle
    raise ValueError("; ".join(f"{name}: {why}" for name, why in obstacles.items()))
