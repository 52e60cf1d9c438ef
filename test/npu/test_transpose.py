"""Codes by rows become codes by columns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ascend_gguf.npu.groups import ROWS_OF_WORD
from ascend_gguf.npu.transpose import transposer


def packed(codes: np.ndarray, bits: int, planes: int) -> np.ndarray:
    """The bytes of ``codes [rows, cols]`` by columns, written down again."""
    columns = codes.T.astype(np.int8).astype(int)
    if planes:
        low = (columns + 8) % 16 - 8
        high = (columns - low) // 16
        halves = [half.reshape(-1, 1, planes, len(codes)) for half in (high, low)]
        columns = np.concatenate(halves, axis=1).reshape(-1, len(codes))
    if bits == 8:
        return columns.astype(np.int8).view(np.uint8)
    return (columns[:, 0::2] & 15 | (columns[:, 1::2] & 15) << 4).astype(np.uint8)


@pytest.mark.parametrize(("bits", "planes"), [(4, 0), (8, 0), (4, 16), (4, 32)])
@pytest.mark.parametrize("rows", [8, 120, 128, 136, 392])
@pytest.mark.parametrize("cols", [32, 96, 160])
def test_packs_along_the_rows(bits, planes, rows, cols):
    codes = np.random.default_rng(rows).integers(-128, 120, (rows, cols + 32)).astype(np.int8)
    expected = packed(codes[:, :cols], bits, planes)
    found = np.zeros((len(expected), expected.shape[1] + 8), np.uint8)
    places = torch.from_numpy(codes), torch.from_numpy(found)
    transposer(bits, planes)(*places, rows // ROWS_OF_WORD[bits], cols)
    assert np.array_equal(found[:, : expected.shape[1]], expected)
    assert not found[:, expected.shape[1] :].any()
