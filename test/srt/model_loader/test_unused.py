"""Weights that a class of the engine skips."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ascend_gguf import GGUFError
from ascend_gguf.srt.model_loader import unused
from ascend_gguf.weights.block_tensor import as_blocks
from ascend_gguf.weights.load_stream import Stream


@pytest.fixture
def check(monkeypatch):
    """Offers weights to a class that takes some of their rows, as a rank of a server."""

    def run(taken: dict[str, tuple[int, int]], offered: list[str], **ranks: int) -> None:
        alone = {"pp_size": 1, "tp_rank": 0, "moe_ep_size": 1}
        monkeypatch.setattr(unused, "get_parallel", lambda: SimpleNamespace(**alone | ranks))
        found = unused.Offered()
        with Stream() as stream:
            for name in offered:
                weight = as_blocks(torch.ones(4, 8))
                found.add(name, weight)
                if name in taken:
                    start, stop = taken[name]
                    torch.empty(stop - start, 8).copy_(weight[start:stop])
        found.check(stream, "model.gguf")

    return run


def test_what_nothing_takes_is_named(check):
    names = [f"layers.{i}.weight" for i in range(5)]
    with pytest.raises(GGUFError, match=r"layers\.3\.weight and 1 more"):
        check({names[1]: (0, 4)}, names)
    with pytest.raises(GGUFError) as caught:
        check({names[1]: (0, 4), names[4]: (2, 3)}, names)
    assert "layers.0.weight, layers.2.weight, layers.3.weight" in str(caught.value)
    assert "layers.1" not in str(caught.value)


def test_memory_of_what_was_skipped_is_the_next_weights(check):
    names = [f"layers.{i}.weight" for i in range(64)]
    with pytest.raises(GGUFError, match=r"layers\.0\.weight, .* and 29 more"):
        check(dict.fromkeys(names[1::2], (0, 4)), names)


@pytest.mark.parametrize("rows", [(0, 4), (0, 1), (3, 4)])
def test_a_part_is_enough(check, rows):
    check({"a.weight": rows}, ["a.weight"])


def test_what_others_have_is_not_missed(check):
    check({}, ["a.experts.0.weight"], moe_ep_size=2)
    check({}, ["a.weight"], pp_size=2)
    check({}, ["a.weight"], tp_rank=1)
    check({}, ["lm_head.weight"])
    with pytest.raises(GGUFError, match=r"a\.weight"):
        check({}, ["a.weight", "a.experts.0.weight"], moe_ep_size=2)
