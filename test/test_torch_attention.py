"""Attention with capped scores or sinks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from ascend_gguf import torch_attention
from ascend_gguf.torch_attention import attend, attend_requests

SCALE = 0.3


def _inputs(tokens: int = 5, length: int = 9):
    torch.manual_seed(0)
    return torch.randn(tokens, 4, 8), torch.randn(length, 2, 8), torch.randn(length, 2, 8)


def _mask(tokens: int, length: int, window: int | None) -> torch.Tensor:
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    if window is not None:
        mask &= ~torch.ones(length, length, dtype=torch.bool).tril(-window - 1)
    return mask[-tokens:]


@pytest.mark.parametrize("window", [None, 2])
def test_plain_attention_is_torchs(window):
    q, k, v = _inputs()
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        attn_mask=_mask(5, 9, window),
        scale=SCALE,
        enable_gqa=True,
    )[0].transpose(0, 1)
    torch.testing.assert_close(attend(q, k, v, SCALE, window=window), expected)


def test_cap():
    """Scores far above the cap all count the same, those far below it as they are."""
    q, k, v = _inputs(tokens=1)
    mean = v.mean(0).repeat_interleave(2, dim=0)[None]
    capped = attend(q * 1e4, k.abs(), v, SCALE, cap=1e-6)
    torch.testing.assert_close(capped, mean, atol=1e-4, rtol=0)
    plain = attend(q, k, v, SCALE)
    torch.testing.assert_close(attend(q, k, v, SCALE, cap=1e4), plain, atol=1e-5, rtol=0)


def test_temperature():
    """Scores of a token beyond it grow with the logarithm of its place."""
    q, k, v = _inputs()
    growths = (max(1, math.log(place, 6)) for place in range(4, 9))
    alone = [
        attend(q[i : i + 1], k[: 5 + i], v[: 5 + i], SCALE * growth)
        for i, growth in enumerate(growths)
    ]
    torch.testing.assert_close(attend(q, k, v, SCALE, temperature=6), torch.cat(alone))


def test_sinks_take_a_share():
    q, k, v = _inputs()
    plain = attend(q, k, v, SCALE)
    none = attend(q, k, v, SCALE, sinks=torch.full((4,), -torch.inf))
    torch.testing.assert_close(none, plain)
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, 1)) * SCALE
    total = scores.masked_fill(~_mask(5, 9, None), -torch.inf).logsumexp(-1)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    share = torch.sigmoid(total - sinks[:, None]).T[..., None]
    torch.testing.assert_close(attend(q, k, v, SCALE, sinks=sinks), plain * share)


@pytest.mark.parametrize("window", [None, 2])
def test_both_ways_over_a_cache(monkeypatch, window):
    """Each token sees those after it too, also where queries are taken a few at a time."""
    monkeypatch.setattr(torch_attention, "_QUERIES", 3)
    q, k, v = _inputs(tokens=8, length=8)
    found = attend_requests(
        *(q, torch.zeros(8, 4, 8), k, v, torch.arange(8)[None]),
        *([0], [8], [8], SCALE),
        window=window,
        both_ways=True,
    )
    ones = torch.ones(8, 8, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        attn_mask=ones if window is None else ones.triu(-window) & ones.tril(window),
        scale=SCALE,
        enable_gqa=True,
    )[0].transpose(0, 1)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("window", [None, 2])
def test_requests_over_a_cache(monkeypatch, window):
    """A few queries at a time give what all at once give, each request its own slots."""
    monkeypatch.setattr(torch_attention, "_QUERIES", 3)
    torch.manual_seed(1)
    lengths, new = [9, 4], [7, 4]
    q, caches = torch.randn(12, 4, 8), (torch.randn(40, 2, 8), torch.randn(40, 2, 8))
    slots = torch.randperm(40)[:30].view(3, 10)
    output = torch.zeros(12, 4, 8)
    options = {"window": window, "cap": 0.5}
    found = attend_requests(q, output, *caches, slots, [2, 0], lengths, new, SCALE, **options)
    assert found is output and not output[11].any()  # no request's
    for rows, request, length in ((slice(0, 7), 2, 9), (slice(7, 11), 0, 4)):
        k, v = (cache[slots[request, :length]] for cache in caches)
        torch.testing.assert_close(output[rows], attend(q[rows], k, v, SCALE, **options))
