"""Rows copied, and numbers converted, by kernels."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.cpu.copies import convert, converts, copy_rows, has_rows

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("shape", [(1, 64), (7, 3), (40, 2, 96), (300, 5, 8)], ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.uint8], ids=str)
def test_copy_rows(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = (torch.rand(shape[0], *shape[1:-1], 2 * shape[-1]) * 100).to(dtype)[..., : shape[-1]]
    assert has_rows(x)
    out = torch.zeros(shape[0] + 2, *shape[1:], dtype=dtype)
    copy_rows(x, out)
    assert torch.equal(out[:-2], x) and not out[-2:].any()
    places = torch.randperm(len(out))[: len(x)]
    expected = out.clone()
    expected[places] = x
    copy_rows(x, out, places)
    assert torch.equal(out, expected)


def test_rows_in_pieces_are_no_rows() -> None:
    assert not has_rows(torch.zeros(3, 8)[:, ::2])
    assert not has_rows(torch.zeros(3, 4, 8).transpose(1, 2))
    assert not has_rows(torch.zeros(3, 2, 4, 8)[..., :4])
    assert not has_rows(torch.zeros(0, 4))
    assert not has_rows(torch.tensor(1.0))


@pytest.mark.parametrize("out_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_convert(dtype: torch.dtype, out_dtype: torch.dtype) -> None:
    x = torch.randn(3, 70000).to(dtype)[:, :69984].contiguous()
    x[0, :6] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-30, -1e30]).to(dtype)
    out = torch.empty(x.shape, dtype=out_dtype)
    assert converts(x, out)
    convert(x, out)
    assert torch.equal(out, x.to(out_dtype))


def test_what_is_not_converted() -> None:
    x = torch.zeros(4, 32)
    assert not converts(x, torch.zeros(4, 32, dtype=torch.int64))
    assert not converts(x, torch.zeros(32, 4, dtype=torch.bfloat16))
    assert not converts(x[:, :31], torch.zeros(4, 31, dtype=torch.bfloat16))
