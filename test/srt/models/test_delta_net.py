"""Columns of several ranks, of a matrix whose heads are in the file's order."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type

from ascend_gguf.srt.models.qwen3_5 import _by_rank
from ascend_gguf.weights.block_tensor import BlockTensor


@pytest.mark.parametrize("kind", [Type.F32, Type.Q8_0, Type.Q4_0], ids=lambda kind: kind.name)
@pytest.mark.parametrize("width", [32, 48], ids=["whole blocks", "cut blocks"])
def test_columns_by_rank(kind, width):
    share, ranks = 2, 2
    values = np.random.default_rng(0).standard_normal((3, share * ranks * width), np.float32)
    blocks = torch.from_numpy(gguf.quantize(values, kind).view(np.uint8))
    weight = BlockTensor(blocks, int(kind), factor=0.5)
    found = _by_rank(weight, share, ranks)
    numbers = weight.dequantize().view(3, share, ranks, width)
    for rank, part in enumerate(found.dequantize().view(3, ranks, share, width).unbind(1)):
        assert torch.equal(part, numbers[:, :, rank])
    stays = kind == Type.F32 or width == 32
    assert found.block_type.ggml_type == (kind if stays else Type.F32)
