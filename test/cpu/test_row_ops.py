"""Operations on rows, against torch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ascend_gguf.cpu.row_ops import gelu_tanh_and_mul, rms_norm, rotate, rotate_by, silu_and_mul

#: dtype -> the relative rounding of a result.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}

EVERY_DTYPE = pytest.mark.parametrize("dtype", ROUNDING, ids=str)
SHAPES = pytest.mark.parametrize("shape", [(1, 1024), (3, 5, 128), (300, 80)], ids=str)


def close(value: torch.Tensor, expected: torch.Tensor) -> None:
    tolerance = ROUNDING[value.dtype]
    torch.testing.assert_close(value.double(), expected, rtol=tolerance, atol=tolerance / 100)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, size: float = 1.0) -> torch.Tensor:
    """Rows of a wider tensor: evenly spaced, not adjacent."""
    wide = torch.randn(*shape[:-1], 2 * shape[-1]) * size
    return wide.to(dtype)[..., shape[-1] :]


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.double()


@SHAPES
@EVERY_DTYPE
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, residual = numbers(shape, dtype), numbers(shape, dtype, 3.0)
    for weight in (torch.randn(shape[-1]).to(dtype), torch.randn(shape[-1])):
        close(rms_norm(x, weight, 1e-6), norm(x.double(), weight, 1e-6))
        more = rms_norm(x, weight, 1e-6, plus_one=True)
        close(more, norm(x.double(), 1 + weight.double(), 1e-6))
        out, sums = rms_norm(x, weight, 1e-2, residual)
        close(out, norm(x.double() + residual.double(), weight, 1e-2))
        torch.testing.assert_close(sums, (x.float() + residual.float()).to(dtype), rtol=0, atol=0)


def test_rms_norm_of_rows_that_are_not_evenly_spaced() -> None:
    x, weight = torch.randn(5, 6, 64)[:, :4], torch.randn(64)
    close(rms_norm(x, weight, 1e-6), norm(x.double(), weight, 1e-6))


def test_rms_norm_of_zeros() -> None:
    assert not rms_norm(torch.zeros(2, 64), torch.ones(64), 1e-6).any()


@SHAPES
@EVERY_DTYPE
def test_silu_and_mul(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = numbers((*shape[:-1], 2 * shape[-1]), dtype, 4.0)
    gate, up = x.double().chunk(2, -1)
    close(silu_and_mul(x), F.silu(gate) * up)
    close(gelu_tanh_and_mul(x), F.gelu(gate, approximate="tanh") * up)


def test_activations_of_large_numbers() -> None:
    gate = torch.tensor([-1e30, -200.0, -50.0, 0.0, 50.0, 200.0, 1e30, 1.0]).repeat(2)
    out = silu_and_mul(torch.cat([gate, torch.ones(16)]))
    torch.testing.assert_close(out, F.silu(gate), rtol=1e-6, atol=1e-7)
    out = gelu_tanh_and_mul(torch.cat([gate, torch.ones(16)]))
    torch.testing.assert_close(out, F.gelu(gate, approximate="tanh"), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary", [128, 96, 32])
@EVERY_DTYPE
def test_rotate(dtype: torch.dtype, rotary: int, interleaved: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 7, 128).to(dtype)[:, :5]  # heads beside others
    positions = torch.randint(0, 100, (70,))
    angles = torch.rand(100, rotary // 2) * 6
    cos_sin = torch.cat([angles.cos(), angles.sin()], 1).to(dtype)
    cos, sin = (t[positions, None].double() for t in cos_sin.chunk(2, 1))
    turned = x[..., :rotary].double()
    if interleaved:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = turned.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    out = rotate(x, positions, cos_sin, interleaved=interleaved)
    # Differences of products, next to products of up to 4.
    torch.testing.assert_close(out[..., :rotary].double(), turned, rtol=ROUNDING[dtype], atol=4e-7)
    assert torch.equal(out[..., rotary:], x[..., rotary:])
    if rotary == 128 and not interleaved:
        assert torch.equal(out, rotate_by(x, *cos_sin[positions].chunk(2, 1)))
