"""A parameter that takes a weight in pieces and keeps it in a layout of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ascend_gguf.weights import load_stream
from ascend_gguf.weights.block_tensor import BlockTensor, as_blocks
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated

_aten = torch.ops.aten

#: The expert, row and column of a weight.
_Place = tuple[int, int, int]

#: The layouts that a weight may have, in another order or with another one first.
Order = Callable[[Weight, Sequence[type[Layout]]], Sequence[type[Layout]]]


class PendingWeight(torch.Tensor):
    """The mirror image of :class:`~ascend_gguf.BlockTensor`: a weight to be, without memory.

    Shape ``[rows, cols]`` or ``[experts, rows, cols]``; reports the dtype and the device of the
    layer.  ``narrow``, slicing with step 1, ``select`` of an expert and ``detach`` make views, as
    engines' weight loaders do to find the place of a tensor.  ``copy_`` takes a ``BlockTensor`` or
    floats, ``zero_`` and ``fill_(0)`` take zeros; ``zeros_like`` is a plain tensor on the host.
    Nothing else is defined on it.

    What is copied into it is kept as views.  As soon as every weight has come, it is converted,
    once, to the first of its layouts that can hold all of its pieces.

    Args:
        shape, dtype, device: of the weight.
        layouts: that it may have, best first.
        order: their order for the weight that came; by default as they are.

    Attributes, of the :attr:`whole` weight alone:
        loaded: the converted weight, on the device; None until then.
        has_nan: whether the file has something there that is not a number.
    """

    loaded: Layout | None
    has_nan: bool
    _layouts: tuple[type[Layout], ...]
    _order: Order | None
    _pieces: dict[_Place, Piece]
    _sizes: dict[_Place, int]  # of pieces and of zeros
    _is_complete: bool
    _to_convert: int  # pieces
    _lock: threading.Lock
    # Of a view too.
    _start: _Place
    _whole: PendingWeight | None

    @staticmethod
    def __new__(
        cls,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        layouts: Sequence[type[Layout]],
        order: Order | None = None,
    ) -> PendingWeight:
        self = torch.Tensor._make_wrapper_subclass(cls, tuple(shape), dtype=dtype, device=device)
        self._start, self._whole = (0, 0, 0), None
        self.loaded, self.has_nan = None, False
        self._layouts, self._order = tuple(layouts), order
        self._pieces, self._sizes = {}, {}
        self._is_complete, self._to_convert = False, 0
        self._lock = threading.Lock()
        return self

    @property
    def whole(self) -> PendingWeight:
        """The weight that this is a view of, or is."""
        return self if self._whole is None else self._whole

    def missing(self) -> str:
        """Which expert is incomplete, as an index such as ``[7]``; empty for a single matrix."""
        *experts, rows, cols = self.shape
        came = [0] * (experts[0] if experts else 1)
        for (expert, _, _), size in self._sizes.items():
            came[expert] += size
        first = next((e for e, size in enumerate(came) if size < rows * cols), None)
        return f"[{first}]" if experts and first is not None else ""

    def _view(self, shape: Sequence[int], axis: int = -1, by: int = 0) -> PendingWeight:
        """A view that begins ``by`` further along an axis, counted from the end."""
        view = torch.Tensor._make_wrapper_subclass(
            PendingWeight, tuple(shape), dtype=self.dtype, device=self.device
        )
        expert, row, col = (n + by * (i - 3 == axis) for i, n in enumerate(self._start))
        view._start, view._whole = (expert, row, col), self.whole
        return view

    def _slice(self, dim: int = 0, start: int | None = None, end: int | None = None) -> Any:
        dim %= self.dim()
        start, end, _ = slice(start, end).indices(self.shape[dim])
        shape = list(self.shape)
        shape[dim] = max(0, end - start)
        return self._view(shape, dim - self.dim(), start)

    def _take(self, data: torch.Tensor) -> None:
        """Keep what belongs here, in place of what came for it before."""
        if data.shape != self.shape:
            raise ValueError(f"a weight of {tuple(self.shape)} does not take {tuple(data.shape)}")
        if data.numel() == 0:  # of a rank that has padding alone
            return
        if not isinstance(data, BlockTensor):
            # Floats that a model made of several of the file's weights.
            data = as_blocks(data.cpu().contiguous())
        if not isinstance(data, BlockTensor):
            raise TypeError(f"a weight that has not been loaded takes no {data.dtype}")
        expert, row, col = self._start
        for i, matrix in enumerate(data.matrices()):
            piece = Piece(expert + i, row, col, matrix)
            self.whole._keep((expert + i, row, col), matrix.numel(), piece)

    def _keep(self, place: _Place, size: int, piece: Piece | None) -> None:
        """``size`` weights from a place on are those of a piece, or zeros."""
        if self._is_complete:
            raise ValueError("weight loaded twice")
        self._sizes[place] = size
        if piece is not None:
            self._pieces[place] = piece
        if sum(self._sizes.values()) >= self.numel():
            self._convert()

    def _convert(self) -> None:
        *experts, rows, cols = self.shape
        pieces = tuple(self._pieces.values())
        self._pieces.clear()
        self._is_complete, self._to_convert = True, len(pieces)
        weight = Weight(experts[0] if experts else None, rows, cols, self.dtype, pieces)
        layouts = self._layouts if self._order is None else self._order(weight, self._layouts)
        layout = allocated(weight, layouts)
        if not pieces:  # a rank that has padding alone
            self.loaded = layout.to(self.device)
        for piece in pieces:
            load_stream.run(piece.data, partial(self._put, layout, piece))

    def _put(self, layout: Layout, piece: Piece) -> None:
        """Convert a piece, perhaps in another thread; the last one completes the weight."""
        layout.put(piece)
        with self._lock:
            self._to_convert -= 1
            is_last = self._to_convert == 0
        if is_last:
            self.has_nan = layout.has_nan()
            self.loaded = layout.to(self.device)

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
                self.whole._keep(self._start, self.numel(), None)
            return self
        if func is _aten.zeros_like.default:
            return torch.zeros(self.shape, dtype=self.dtype, device="cpu")
        # Module.float(), as of the output matrix of Falcon-H1: its layout has a dtype of its own.
        is_float = func is _aten._to_copy.default and kwargs == {"dtype": torch.float32}
        if is_float or func in (_aten.detach.default, _aten.alias.default):
            return self._view(self.shape)
        if func is _aten.slice.Tensor and args[4:] in ((), (1,)):  # the step
            return self._slice(*args[1:4])
        if func is _aten.select.int and self.dim() == 3 and args[1] == 0:
            return self._view(self.shape[1:], -3, args[2] % self.shape[0])
        raise NotImplementedError(f"{func} on a weight that has not been loaded")

    def __repr__(self) -> str:  # type: ignore[override]  # the default would ask for values
        return f"PendingWeight(shape={tuple(self.shape)})"
