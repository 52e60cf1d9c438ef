"""Drawing tokens."""

from __future__ import annotations

import pytest
import torch

from ascend_gguf.cpu.sampling import (
    FEW,
    MORE,
    filtered,
    most_probable,
    sample,
    sample_seeded,
    uniforms,
)


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


def test_tokens_of_all_blocks_can_be_drawn() -> None:
    torch.manual_seed(0)
    probs = torch.zeros(1, 300)  # two blocks and a part of one
    tokens = [0, 127, 128, 255, 256, 299]
    probs[:, tokens] = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0, 3.0]) / 7
    counts = sample(probs.expand(12000, -1)).bincount(minlength=300)
    assert counts.nonzero()[:, 0].tolist() == tokens
    torch.testing.assert_close(
        counts[tokens] / 12000, probs[0, tokens] / probs.sum(), rtol=0.1, atol=0
    )


@pytest.mark.parametrize("vocabulary", [5 * MORE, 40 * MORE + 77])
@pytest.mark.parametrize("count", [FEW, MORE])
def test_most_probable(count: int, vocabulary: int) -> None:
    torch.manual_seed(0)
    probs = torch.softmax(torch.randn(2, vocabulary) * 3, -1)
    all_, one = torch.full((2,), vocabulary), torch.ones(2)
    best = probs.topk(count).values
    reached = best.sum(-1)
    for top_ks, top_ps in ((all_, reached - 1e-3), (one.int() * count, one)):
        values, ids = most_probable(probs, top_ks, top_ps)
        assert torch.equal(probs.gather(1, ids), values)
        assert torch.equal(values, best)
    # Those of one row are more.
    for top_ks, top_ps in (
        (all_, torch.stack([reached[0] - 1e-3, reached[1] + 1e-3])),
        (torch.tensor([count, count + 1]), one),
    ):
        found = most_probable(probs, top_ks, top_ps)
        assert found is None if count == MORE else found[0].shape == (2, MORE)
    assert most_probable(probs, torch.tensor([1, vocabulary]), one) is None


def test_a_small_vocabulary() -> None:
    probs = torch.softmax(torch.randn(2, FEW), -1)
    assert most_probable(probs, torch.tensor([3, 3]), torch.tensor([0.1, 0.1])) is None


def test_seeds_and_positions_make_independent_numbers():
    many = torch.arange(20_000)
    for drawn in (uniforms(many, torch.full_like(many, 3)), uniforms(torch.zeros_like(many), many)):
        assert 0 <= drawn.min() and drawn.max() < 1
        counts = torch.histc(drawn, 20, 0, 1)
        assert (counts - 1000).abs().max() < 150
        assert abs(torch.corrcoef(torch.stack((drawn[1:], drawn[:-1])))[0, 1]) < 0.03


def test_a_seeded_row_depends_on_itself_alone():
    probs = torch.randn(6, 300).softmax(-1)
    probs[:, ::2] = 0
    seeds, positions = torch.tensor([1, 1, 2, -(2**63), 2**63 - 1, 0]), torch.arange(6)
    together = sample_seeded(probs, seeds, positions)
    rows = [slice(i, i + 1) for i in range(6)]
    alone = [sample_seeded(probs[row], seeds[row], positions[row]) for row in rows]
    assert together.tolist() == [int(token) for token in alone]
    assert (together % 2 == 1).all()
    probs[2], probs[4] = torch.nan, 0
    told = sample_seeded(probs, seeds, positions)
    assert (
        told[[2, 4]].tolist() == [-1, -1] and (told[[0, 1, 3, 5]] == together[[0, 1, 3, 5]]).all()
    )


def test_seeded_tokens_follow_the_probabilities():
    probs = torch.tensor([0.5, 0.25, 0.0, 0.125, 0.125])
    count = 40_000
    positions = torch.zeros(count, dtype=torch.int64)
    drawn = sample_seeded(probs.expand(count, -1), torch.arange(count), positions)
    found = torch.bincount(drawn, minlength=5) / count
    assert (found - probs).abs().max() < 0.01 and found[2] == 0


def test_top_k_top_p_and_min_p_leave_out_the_least_probable():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).expand(4, -1)
    everything = 1 << 30
    top_ks = torch.tensor([2, everything, everything, everything])
    top_ps, min_ps = torch.tensor([1.0, 0.5, 1.0, 1.0]), torch.tensor([0.0, 0.0, 0.6, 0.0])
    kept = filtered(probs, top_ks, top_ps, min_ps)
    assert (kept > 0).tolist() == [
        [False, True, False, True],
        [False, True, False, True],
        [False, True, False, True],
        [True, True, True, True],
    ]
    assert torch.equal(kept[kept > 0], probs[kept > 0])
