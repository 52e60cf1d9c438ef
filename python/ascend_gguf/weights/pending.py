"""A parameter that takes a weight in pieces and keeps it in a layout of its own.

The mirror image of :class:`~ascend_gguf.BlockTensor`: engines' weight loaders narrow a parameter
to the rows, or the expert, that a tensor of the file fills, and copy it there.  A
:class:`PendingWeight` has the parameter's logical shape and no memory; what is copied into it is
kept as views, and as soon as every weight has come it is converted, once, to the first of its
layouts that can hold all of its parts.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from ascend_gguf.weights import load_stream
from ascend_gguf.weights.block_tensor import BlockTensor, as_blocks
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated

_aten = torch.ops.aten


class PendingPieces:
    """What all views of one :class:`PendingWeight` share.

    Attributes:
        layout: the converted weight, on the device; None until then.
        has_nan: whether the file has something there that is no number.
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        layouts: Sequence[type[Layout]],
    ) -> None:
        self.shape = tuple(shape)
        self.dtype = dtype
        self.device = device
        self.layouts = tuple(layouts)
        self.layout: Layout | None = None
        self.has_nan = False
        self._pieces: dict[tuple[int, int, int], Piece] = {}
        self._zeros: dict[tuple[int, int, int], int] = {}
        self._is_whole = False
        self._to_convert = 0
        self._lock = threading.Lock()

    def take(self, piece: Piece) -> None:
        """Keep a piece, in place of an earlier one for the same weights."""
        if self._is_whole:
            raise ValueError("a weight that is complete came once more")
        self._pieces[piece.expert, piece.row, piece.col] = piece
        self._convert_if_whole()

    def take_zeros(self, expert: int, row: int, col: int, count: int) -> None:
        """``count`` weights from there on are zero: padding."""
        self._zeros[expert, row, col] = count
        self._convert_if_whole()

    def _convert_if_whole(self) -> None:
        came = sum(piece.data.numel() for piece in self._pieces.values())
        if came + sum(self._zeros.values()) < torch.Size(self.shape).numel():
            return
        self._is_whole = True
        *experts, rows, cols = self.shape
        pieces = tuple(self._pieces.values())
        self._pieces.clear()
        weight = Weight(experts[0] if experts else None, rows, cols, self.dtype, pieces)
        layout = allocated(weight, self.layouts)
        if not pieces:  # a rank that has padding alone
            self.layout = layout.to(self.device)
        self._to_convert = len(pieces)
        for piece in pieces:
            load_stream.run(piece.data, partial(self._convert, layout, piece))

    def _convert(self, layout: Layout, piece: Piece) -> None:
        layout.put(piece)
        with self._lock:
            self._to_convert -= 1
            is_last = self._to_convert == 0
        if is_last:
            self.has_nan = layout.has_nan()
            self.layout = layout.to(self.device)


class PendingWeight(torch.Tensor):
    """A weight to be: shape ``[rows, cols]`` or ``[experts, rows, cols]``.

    Reports the dtype and the device of the layer.  ``narrow``, slicing with step 1, ``select`` of
    an expert and ``detach`` make views; ``copy_`` takes a ``BlockTensor`` or float numbers,
    ``zero_`` and ``fill_(0)`` take zeros; ``zeros_like`` is a plain tensor on the host.  Nothing
    else is defined on it.

    Args:
        pending: what receives the pieces.
        start: the expert, row and column of the first weight shown.
        shape: of what is shown; all by default.
    """

    pending: PendingPieces
    _start: tuple[int, int, int]

    @staticmethod
    def __new__(
        cls,
        pending: PendingPieces,
        start: tuple[int, int, int] = (0, 0, 0),
        shape: Sequence[int] | None = None,
    ) -> PendingWeight:
        self = torch.Tensor._make_wrapper_subclass(
            cls,
            pending.shape if shape is None else tuple(shape),
            dtype=pending.dtype,
            device=pending.device,
        )
        self.pending, self._start = pending, start
        return self

    def _slice(
        self, dim: int = 0, start: int | None = None, end: int | None = None
    ) -> PendingWeight:
        dim %= self.dim()
        start, end, _ = slice(start, end).indices(self.shape[dim])
        shape = list(self.shape)
        shape[dim] = max(0, end - start)
        return self._moved(dim - self.dim(), start, shape)

    def _moved(self, axis: int, by: int, shape: Sequence[int]) -> PendingWeight:
        """A view that begins ``by`` further along an axis, counted from the end."""
        first = list(self._start)
        first[axis] += by
        expert, row, col = first
        return PendingWeight(self.pending, (expert, row, col), shape)

    def _take(self, data: torch.Tensor) -> None:
        if data.shape != self.shape:
            raise ValueError(f"a weight of {tuple(self.shape)} does not take {tuple(data.shape)}")
        if data.numel() == 0:  # of a rank that has padding alone
            return
        if not isinstance(data, BlockTensor):
            # Numbers that a model made of several of the file's weights.
            data = as_blocks(data.cpu().contiguous())
        if not isinstance(data, BlockTensor):
            raise TypeError(f"a weight that has not been loaded takes no {data.dtype}")
        expert, row, col = self._start
        for i, matrix in enumerate(data.matrices()):
            self.pending.take(Piece(expert + i, row, col, matrix))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares none
        cls,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        self = args[0]
        if func is _aten.copy_.default and isinstance(self, cls):
            self._take(args[1])
            return self
        if func is _aten.zero_.default or (func is _aten.fill_.Scalar and args[1] == 0):
            if self.numel():
                self.pending.take_zeros(*self._start, self.numel())
            return self
        if func is _aten.zeros_like.default:
            return torch.zeros(self.shape, dtype=self.dtype, device="cpu")
        if func in (_aten.detach.default, _aten.alias.default):
            return cls(self.pending, self._start, self.shape)
        if func is _aten.slice.Tensor and args[4:] in ((), (1,)):  # the step
            return self._slice(*args[1:4])
        if func is _aten.select.int and self.dim() == 3 and args[1] == 0:
            return self._moved(-3, args[2] % self.shape[0], self.shape[1:])
        raise NotImplementedError(f"{func} on a weight that has not been loaded")

    def __repr__(self) -> str:  # type: ignore[override]  # the default would ask for numbers
        return f"PendingWeight(shape={tuple(self.shape)})"
