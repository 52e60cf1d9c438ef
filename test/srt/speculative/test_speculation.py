"""Drafted tokens and logits that are not finite: what the host is told, without the kernels."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ascend_gguf.srt.managers.utils import copy_to_cpu
from ascend_gguf.srt.not_finite import NO_TOKEN
from ascend_gguf.srt.speculative import eagle_utils

#: Two requests, three drafted tokens each, of a vocabulary of five.
REQUESTS, DRAFTED, VOCAB = 2, 3, 5


def _check(bad_row: int, accepted: list[list[int]], by_row: bool) -> list[int]:
    """The tokens that the host gets where one row of logits is NaN.

    Args:
        accepted: rows, by request; -1 behind them.
        by_row: tokens come as they were drafted (EAGLE), else as they were accepted (n-grams).
    """
    logits = torch.zeros(REQUESTS * DRAFTED, VOCAB)
    logits[bad_row, 2] = torch.nan
    output = SimpleNamespace(next_token_logits=logits)
    batch = SimpleNamespace(forward_mode=SimpleNamespace(is_idle=lambda: False))

    def original(verify_input, batch, logits_output, mask):
        assert torch.isfinite(logits_output.next_token_logits).all()
        predict = torch.arange(10, 10 + REQUESTS * DRAFTED, dtype=torch.int32)
        index = torch.tensor(accepted, dtype=torch.int32)
        return predict, (index >= 0).sum(1), index

    predict, _, index = eagle_utils.eagle_sample(original, None, batch, output, None)
    assert (predict >= 10).all()  # what the next step begins with are tokens of the model
    result = SimpleNamespace(
        logits_output=output,
        next_token_ids=predict if by_row else predict[index.long()].flatten(),
    )
    copy_to_cpu(lambda self: None, result)
    return result.next_token_ids.tolist()


@pytest.fixture(autouse=True)
def gguf(monkeypatch):
    monkeypatch.setattr(eagle_utils, "serves_gguf", lambda: True)


def test_a_request_ends_where_its_row_is_not_finite():
    accepted = [[0, 1, -1], [3, 4, 5]]
    assert _check(1, accepted, by_row=True) == [10, NO_TOKEN, 12, 13, 14, 15]
    assert _check(4, accepted, by_row=False)[3:] == [13, NO_TOKEN, 15]


def test_rows_of_tokens_that_were_not_accepted_do_not_matter():
    accepted = [[0, 1, -1], [3, -1, -1]]
    assert NO_TOKEN not in _check(2, accepted, by_row=True)
    assert NO_TOKEN not in _check(5, accepted, by_row=False)
