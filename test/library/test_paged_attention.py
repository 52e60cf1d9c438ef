"""Attention over a cache of slots, against softmax in float64."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.kernels.paged_attention import attend, takes

#: dtype -> the relative rounding of a result.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
#: Query heads, key heads, head size, size of a value.
SHAPES = [(16, 8, 128, 128), (4, 4, 64, 64), (14, 2, 64, 64), (12, 1, 256, 256), (32, 2, 16, 48)]
SLOTS, LONGEST = 700, 600


def reference(query, keys, values, slots, requests, lengths, scale, window):
    group = query.shape[1] // keys.shape[1]
    out = []
    for token, request, length in zip(query.double(), requests, lengths.tolist(), strict=True):
        first = 0 if window is None else max(0, length - 1 - window)
        chosen = slots[request, first:length].long()
        k, v = (t[chosen].double().repeat_interleave(group, 1) for t in (keys, values))
        weights = torch.softmax(torch.einsum("hd,khd->hk", token, k) * scale, -1)
        out.append(torch.einsum("hk,khd->hd", weights, v))
    return torch.stack(out)


@pytest.mark.parametrize("window", [None, 0, 7, 100])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_attend(dtype: torch.dtype, shape: tuple[int, ...], window: int | None) -> None:
    heads, kv_heads, size, value_size = shape
    torch.manual_seed(0)
    # Queries as they lie in the output of one matrix, beside keys and values.
    query = torch.randn(6, heads + 3, size).to(dtype)[:, :heads]
    keys = torch.randn(SLOTS, kv_heads, size).to(dtype)
    values = torch.randn(SLOTS, kv_heads, value_size).to(dtype)
    slots = torch.stack([torch.randperm(SLOTS)[:LONGEST] for _ in range(5)]).int()
    requests = torch.tensor([4, 0, 1, 1, 1, 2])
    lengths = torch.tensor([1, LONGEST, 64, 65, 66, 299])
    arguments = query, keys, values, slots, requests, lengths, size**-0.5, window
    out = attend(*arguments)
    assert out.dtype == dtype
    expected = reference(*arguments)
    torch.testing.assert_close(out.double(), expected, rtol=ROUNDING[dtype], atol=1e-6)


def test_scores_far_apart() -> None:
    """The greatest score comes last, the others underflow; and slots may be 64 bits wide."""
    query = torch.full((1, 1, 16), 30.0)
    keys = torch.linspace(-1, 1, 200)[:, None, None].expand(200, 1, 16).contiguous()
    values = torch.arange(200.0)[:, None, None].expand(200, 1, 16).contiguous()
    slots, requests = torch.arange(200)[None], torch.zeros(1, dtype=torch.int64)
    arguments = query, keys, values, slots, requests, torch.tensor([200]), 1.0, None
    torch.testing.assert_close(attend(*arguments).double(), reference(*arguments))


def test_a_cache_in_another_dtype() -> None:
    torch.manual_seed(0)
    query, cache = torch.randn(1, 4, 32), torch.randn(50, 2, 32).half()
    slots, requests = torch.arange(50)[None].int(), torch.zeros(1, dtype=torch.int64)
    arguments = query, cache, cache, slots, requests, torch.tensor([50]), 0.2, None
    expected = reference(*arguments)
    torch.testing.assert_close(attend(*arguments).double(), expected, rtol=1e-6, atol=1e-6)


def test_takes() -> None:
    query, cache = torch.empty(3, 4, 32), torch.empty(9, 2, 32)
    assert takes(query, cache, cache, query)
    assert not takes(query[..., :20], cache[..., :20], cache, query)
    assert not takes(query, cache.transpose(0, 1).contiguous().transpose(0, 1), cache, query)
    assert not takes(query, cache, cache, torch.empty(3, 4, 64)[..., :32])
    assert not takes(query, torch.empty(9, 3, 32), cache, query)
