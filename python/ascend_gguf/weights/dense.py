"""Dense weights: the layout that holds every weight."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from ascend_gguf.thread_pool import WEIGHTS_PER_PIECE
from ascend_gguf.weights.layout import Layout, Piece, Weight


class Dense(Layout):
    """``weight``: ``dtype`` of the weight's shape."""

    name = "dense"

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        return None

    @classmethod
    def allocate(cls, weight: Weight) -> Dense:
        dense = torch.zeros(weight.shape, dtype=weight.dtype, device="cpu")
        return cls(weight.shape, weight.dtype, {"weight": dense})

    def tasks(self, piece: Piece) -> Iterator[Callable[[], object]]:
        matrix = self.tensors["weight"].view(-1, *self.shape[-2:])[piece.expert]
        rows, cols = piece.data.shape
        target = matrix[piece.row : piece.row + rows, piece.col : piece.col + cols]
        step = max(1, WEIGHTS_PER_PIECE // cols)
        for row in range(0, rows, step):
            part = slice(row, row + step)
            yield partial(target[part].copy_, piece.data[part])

    def has_nan(self) -> bool:
        # The first weight of each row stands for it: to read all would take as long as to load.
        return bool(self.tensors["weight"][..., 0].isnan().any())

    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        return self.tensors["weight"].view(-1, *self.shape[-2:])[expert, rows].cpu().float()
