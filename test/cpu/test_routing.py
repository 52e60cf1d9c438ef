"""The choice of experts on the CPU beside torch's."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.cpu.routing import softmax_of_best


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize(("experts", "k"), [(3, 2), (8, 8), (60, 4), (64, 1), (128, 8)])
def test_softmax_of_best(experts, k, renormalize, dtype):
    torch.manual_seed(0)
    # No two of a token are equal, in bfloat16 neither.
    rows = torch.stack([torch.randperm(experts) for _ in range(7)])
    logits = ((rows + 0.5) * (8 / experts) - 4).to(dtype)
    weights, ids = softmax_of_best(logits, k, renormalize=renormalize)
    expected, places = logits.float().softmax(-1).topk(k)
    expected = expected / expected.sum(-1, keepdim=True) if renormalize else expected
    assert torch.equal(ids.long(), places)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-7)


def test_equal_logits_are_experts_of_their_own():
    _, ids = softmax_of_best(torch.zeros(2, 20), 6, renormalize=True)
    assert ids.tolist() == [list(range(6))] * 2


@pytest.mark.parametrize("renormalize", [False, True])
def test_experts_without_weight(renormalize):
    logits = torch.randn(3, 24)
    logits[1, 5:] = -torch.inf
    weights, ids = softmax_of_best(logits, 4, renormalize=renormalize)
    expected, places = logits.softmax(-1).topk(4)
    expected = expected / expected.sum(-1, keepdim=True) if renormalize else expected
    assert torch.equal(ids.long(), places)
    torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("renormalize", [False, True])
def test_what_is_not_finite_is_seen(value, renormalize):
    logits = torch.randn(3, 24)
    logits[1, 5] = value
    weights, ids = softmax_of_best(logits, 4, renormalize=renormalize)
    assert weights.isnan().any(-1).tolist() == [False, True, False]
    assert bool(((ids >= 0) & (ids < 24)).all())
