"""Small weights, to try a layout on a device before anything is loaded into it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from gguf import GGMLQuantizationType

from ascend_gguf.ggml_types import block_type
from ascend_gguf.npu.self_check import problem_of
from ascend_gguf.weights.block_tensor import BlockTensor
from ascend_gguf.weights.layout import Layout, Piece, Weight

_EXPERTS, _ROWS, _COLS = 2, 64, 256

#: With scales and offsets, of 4 bits and of more: their blocks begin with both, in float16.
_TYPES = GGMLQuantizationType.Q4_1, GGMLQuantizationType.Q5_1
_SCALE, _OFFSET = 0.01, -0.07


def try_layout(
    layout: type[Layout],
    dtype: torch.dtype,
    check: Callable[[Layout], str | None],
    device: torch.device,
    has_experts: bool,
) -> str | None:
    """What is wrong with a small weight of a layout on a device; None if nothing.

    Args:
        check: as of :meth:`.self_check.SelfCheck.settled`.

    Raises:
        torch.OutOfMemoryError: and whatever else tells that memory ran out.
    """
    for ggml_type in _TYPES:
        pieces = [Piece(i, 0, 0, _matrix(ggml_type, i)) for i in range(_EXPERTS)]
        pieces = pieces if has_experts else pieces[:1]
        weight = Weight(_EXPERTS if has_experts else None, _ROWS, _COLS, dtype, pieces)
        if layout.unsupported_reason(weight) is None:
            trial = layout.allocate(weight)
            for piece in pieces:
                trial.put(piece)
            return problem_of(trial.to(device), check)
    return f"{layout.name}: no type to try it with"


def _matrix(ggml_type: GGMLQuantizationType, seed: int) -> BlockTensor:
    kind = block_type(ggml_type)
    blocks = np.random.default_rng(seed).integers(
        0, 256, (_ROWS, _COLS // kind.block_size, kind.type_size), dtype=np.uint8
    )
    blocks[:, :, :4] = np.array([_SCALE, _OFFSET], np.float16).view(np.uint8)
    return BlockTensor(torch.from_numpy(blocks.reshape(_ROWS, -1)), ggml_type)
