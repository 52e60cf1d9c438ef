"""Eight bits a weight with one scale a row: an approximation, for operators without groups.

Half the memory of float16 on a 310P, whose product with packed weights has no groups.  Unlike the
other layouts it rounds every weight again (docs/weight_layouts.md has the error), so it is used on
demand alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from ascend_gguf.npu.packed_groups import LONGEST
from ascend_gguf.thread_pool import WEIGHTS_PER_PIECE
from ascend_gguf.weights.layout import NOT_QUANTIZED, Layout, Piece, Weight
from ascend_gguf.weights.linear_kernel import LinearKernel

if TYPE_CHECKING:
    from ascend_gguf.weights.block_tensor import BlockTensor

#: The greatest code.
_GREATEST = 127


class ChannelInt8(Layout):
    """A matrix as ``code * scale``, codes from -127 to 127.

    ``packed``: int8 ``[rows, cols]``.
    ``scale``: ``dtype [rows]``; the greatest of a row's weights becomes 127.
    """

    name = "int8, a scale a row"

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if weight.experts is not None:
            return "it has experts"
        if any(not kind.is_quantized for kind in weight.kinds):
            return NOT_QUANTIZED
        if any(piece.data.shape[-1] != weight.cols for piece in weight.pieces):
            return "its rows come in parts"
        if max(weight.shape) > LONGEST:
            return f"{weight.shape} is more than the operator takes"
        return None

    @classmethod
    def allocate(cls, weight: Weight) -> ChannelInt8:
        packed = torch.zeros(weight.shape, dtype=torch.int8, device="cpu")
        scale = torch.zeros(weight.rows, dtype=weight.dtype, device="cpu")
        return cls(weight.shape, weight.dtype, {"packed": packed, "scale": scale})

    def tasks(self, piece: Piece) -> Iterator[Callable[[], None]]:
        step = max(1, WEIGHTS_PER_PIECE // self.shape[1])
        for row in range(0, len(piece.data), step):
            rows = piece.data.rows(row, row + step)
            yield partial(self._put, rows, piece.row + row)

    def _put(self, matrix: BlockTensor, row: int) -> None:
        place = slice(row, row + len(matrix))
        weights = matrix.dequantize()
        scale = (weights.abs().amax(1) / _GREATEST).to(self.dtype)
        self.tensors["scale"][place] = scale
        # Rounding the scale down may put the greatest weight past the last code.
        inverse = torch.where(scale == 0, 0.0, 1 / scale.float()).unsqueeze(1)
        codes = (weights * inverse).round().clamp(-_GREATEST, _GREATEST)
        self.tensors["packed"][place] = codes.to(torch.int8)

    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        codes, scale = (self.tensors[name][rows].cpu().float() for name in ("packed", "scale"))
        return codes * scale.unsqueeze(1)


class NPUChannelLinear(LinearKernel[ChannelInt8]):
    """``npu_weight_quant_batchmatmul`` per channel, transposed as CANN recommends there."""

    layouts = (ChannelInt8,)

    def linear(
        self, x: torch.Tensor, weight: ChannelInt8, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1])
        shape = (*x.shape[:-1], weight.shape[0])
        if not len(rows):
            return x.new_empty(shape)
        if bias is not None and bias.dtype == torch.bfloat16:
            bias = bias.float()
        return torch.ops.npu.npu_weight_quant_batchmatmul(
            rows, weight.tensors["packed"].t(), weight.tensors["scale"], bias=bias
        ).view(shape)
