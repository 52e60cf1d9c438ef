"""Int8 with a scale a row: what it adds to the error of a type, and on an NPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType, quants

from ascend_gguf import BlockTensor
from ascend_gguf.npu.channel_int8 import ChannelInt8
from ascend_gguf.weights.layout import Piece, Weight, allocated

DOCS = (Path(__file__).parents[2] / "docs" / "weight_layouts.md").read_text()
#: Of the table there: the type, and three errors.
ROWS = re.findall(r"^\| (Q\w+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", DOCS, re.M)


def held(matrix: BlockTensor, dtype: torch.dtype = torch.float16) -> ChannelInt8:
    rows, cols = matrix.shape
    pieces = (Piece(0, 0, 0, matrix.rows(0, 24)), Piece(0, 24, 0, matrix.rows(24, rows)))
    layout = allocated(Weight(None, rows, cols, dtype, pieces), [ChannelInt8])
    for piece in pieces:
        layout.put(piece)
    return layout


def matrix_of(weights: torch.Tensor, name: str) -> BlockTensor:
    ggml_type = GGMLQuantizationType[name]
    return BlockTensor(torch.from_numpy(quants.quantize(weights.numpy(), ggml_type)), ggml_type)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_errors(row):
    name, *stated = row
    weights = torch.randn(64, 4096, generator=torch.Generator().manual_seed(0))
    matrix = matrix_of(weights, name)
    exact, found = matrix.dequantize(), held(matrix).dequantize()
    errors = (exact - weights, found - exact, found - weights)
    assert [f"{float(e.norm() / weights.norm()):.3f}" for e in errors] == stated


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_codes_are_the_nearest(dtype):
    weights = torch.randn(48, 256, generator=torch.Generator().manual_seed(1))
    weights[3] = 0
    matrix = matrix_of(weights, "Q8_0")
    layout = held(matrix, dtype)
    exact, step = matrix.dequantize(), layout.tensors["scale"].float().unsqueeze(1)
    # Half a step, and what rounding the scale down cuts off the greatest.
    assert ((layout.dequantize() - exact).abs() <= step * (0.5 + 127 * 2**-8)).all()
    assert layout.tensors["packed"].abs().amax(1).tolist() == [
        0 if i == 3 else 127 for i in range(48)
    ]
    assert layout.nbytes == 48 * 256 + 2 * 48
    assert torch.equal(layout.sample(slice(20, 30)), layout.dequantize()[20:30])


def test_what_it_does_not_hold():
    matrix = matrix_of(torch.randn(32, 64), "Q8_0")
    piece = Piece(0, 0, 0, matrix)
    reasons = {
        "it has experts": Weight(2, 32, 64, torch.float16, [piece]),
        "its rows come in parts": Weight(None, 32, 128, torch.float16, [piece]),
        "more than the operator takes": Weight(None, 65536, 64, torch.float16, [piece]),
    }
    for reason, weight in reasons.items():
        assert reason in ChannelInt8.unsupported_reason(weight)
    assert len(ROWS) == 5
