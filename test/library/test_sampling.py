"""Drawing tokens."""

from __future__ import annotations

import torch

from ascend_gguf.kernels.sampling import MOST_PROBABLE, most_probable, sample


def test_tokens_come_as_often_as_they_are_probable() -> None:
    torch.manual_seed(0)
    probs = torch.tensor([0.0, 0.5, 0.0, 0.125, 0.25, 0.125, 0.0])
    draws = 20000
    counts = sample((3 * probs).expand(draws, -1)).bincount(minlength=7)
    assert not counts[probs == 0].any()
    deviation = (draws * probs * (1 - probs)).sqrt()
    assert ((counts - draws * probs).abs() <= 4 * deviation).all()


def test_the_largest_random_number(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand_like", torch.ones_like)
    assert sample(torch.tensor([[0.1, 0.7, 0.0], [0.0, 0.0, 0.3]])).tolist() == [1, 2]
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    assert sample(torch.tensor([[0.0, 0.1, 0.7], [0.3, 0.0, 0.0]])).tolist() == [1, 0]


def test_most_probable() -> None:
    torch.manual_seed(0)
    probs = torch.softmax(torch.randn(2, 5 * MOST_PROBABLE) * 3, -1)
    reached = probs.topk(MOST_PROBABLE).values.sum(-1)
    values, ids = most_probable(probs, reached - 1e-3)
    assert torch.equal(probs.gather(1, ids), values)
    assert values.min() >= probs.kthvalue(4 * MOST_PROBABLE + 1, -1).values.min()
    assert most_probable(probs, torch.stack([reached[0] - 1e-3, reached[1] + 1e-3])) is None
    assert most_probable(probs, torch.tensor([0.5, 1.0])) is None
    assert most_probable(probs[:, :MOST_PROBABLE], torch.tensor([0.1, 0.1])) is None
