"""Attention over a cache of slots, against softmax in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ascend_gguf.codegen import processor
from ascend_gguf.cpu import paged_attention, prefill_attention
from ascend_gguf.cpu.paged_attention import Tokens, takes

#: dtype -> the relative rounding of a result.
ROUNDING = {torch.float32: 1e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
#: Query heads, key heads, head size, size of a value.
SHAPES = [(16, 8, 128, 128), (4, 4, 64, 64), (14, 2, 64, 64), (12, 1, 256, 256), (32, 2, 16, 48)]
SLOTS, LONGEST = 700, 600


def attend(query, keys, values, slots, requests, lengths, *others):
    tokens = Tokens(requests, lengths)
    return paged_attention.attend(query, keys, values, slots, tokens, *others)


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


# Blocks of tokens

NEEDS_BFLOAT = pytest.mark.skipif(
    not processor.BFLOAT_INSTRUCTIONS, reason="needs a processor with AVX512-BF16"
)
#: Query heads, key heads, head size, size of a value.
BLOCK_SHAPES = [
    (16, 8, 128, 128),
    (4, 4, 64, 48),
    (14, 2, 64, 64),
    (40, 1, 96, 16),
    (3, 3, 32, 160),
]


def batch(*sizes: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each token's request and how many keys it attends to.

    Args:
        sizes: how many tokens a request has, and how many came before them.
    """
    requests = torch.repeat_interleave(torch.tensor([tokens for tokens, _ in sizes]))
    lengths = torch.cat([torch.arange(tokens) + before + 1 for tokens, before in sizes])
    return requests, lengths


@pytest.fixture
def blocks_always(monkeypatch) -> None:
    monkeypatch.setattr(paged_attention, "_BLOCK_TOKENS", 0)


@NEEDS_BFLOAT
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("shape", BLOCK_SHAPES, ids=str)
def test_blocks_of_tokens(shape, window, blocks_always) -> None:
    """Weights are rounded to bfloat16 in blocks, and the result in any case."""
    heads, kv_heads, size, value_size = shape
    torch.manual_seed(0)
    requests, lengths = batch((1, 0), (33, 100), (3, 61))
    query = torch.randn(len(requests), heads + 1, size).bfloat16()[:, :heads]
    keys = torch.randn(SLOTS, kv_heads, size).bfloat16()
    values = torch.randn(SLOTS, kv_heads, value_size).bfloat16()
    slots = torch.stack([torch.randperm(SLOTS) for _ in range(3)])
    slots = slots.int() if window is None else slots
    arguments = query, keys, values, slots, requests, lengths, size**-0.5, window
    expected = reference(*arguments)
    error = attend(*arguments).double() - expected
    assert error.norm() <= 0.0025 * expected.norm()
    assert error.abs().max() <= 0.01


def test_one_key_among_many_is_exact(blocks_always) -> None:
    """A weight that is nearly 1 takes its value over: rounding it does not shrink the result."""
    keys, values = torch.zeros(2, 80, 1, 32)
    keys[77] = 1.0
    values[77] = torch.arange(32.0)
    requests, lengths = torch.zeros(40, dtype=torch.int64), torch.full((40,), 80)
    query, slots = torch.ones(40, 1, 32), torch.arange(80)[None]
    cache = [t.bfloat16() for t in (query, keys, values)]
    out = attend(*cache, slots, requests, lengths, 1.0)
    torch.testing.assert_close(out.float(), values[77].expand(40, 1, 32))


def test_threads_do_not_change_bits(blocks_always) -> None:
    requests, lengths = batch((100, 20), (50, 0))
    query, keys, values = (torch.randn(150, 4, 64).bfloat16() for _ in range(3))
    arguments = query, keys, values, torch.arange(150).repeat(2, 1), requests, lengths, 0.1
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(attend(*arguments))
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_which_tokens_are_a_block() -> None:
    requests, lengths = np.array([3, 3, 3, 0, 0, 3]), np.array([5, 6, 7, 1, 2, 9])
    found = prefill_attention.blocks(requests, lengths, window=1 << 40, most=2)
    assert found.tolist() == [[5, 1, 0, 9], [2, 1, 0, 7], [0, 2, 0, 6], [3, 2, 0, 2]]
    assert prefill_attention.blocks(requests, lengths, window=1, most=8)[1].tolist() == [0, 3, 3, 7]


@NEEDS_BFLOAT
def test_what_is_taken_in_blocks() -> None:
    bfloats, floats = torch.empty(1, 1, 64).bfloat16(), torch.empty(1, 1, 64)
    assert prefill_attention.takes(bfloats, bfloats)
    assert not prefill_attention.takes(floats, floats)
    assert not prefill_attention.takes(bfloats, floats)
    assert not prefill_attention.takes(bfloats[..., :48], bfloats)
