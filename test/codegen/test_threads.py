"""Threads that kernels run on."""

from __future__ import annotations

import os
from array import array

import pytest
import torch

from ascend_gguf.codegen import threads
from ascend_gguf.cpu.row_ops import silu_and_mul


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"GOMP_SPINCOUNT": "4000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "active"}, {"OMP_WAIT_POLICY": "active"}),
    ],
    ids=str,
)
def test_waiting(before: dict, after: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", before)
    threads.wait_briefly()
    assert before == after


def test_listening() -> None:
    """The listener hears of each kernel, with its job as it was before any tile was taken."""
    heard: list[tuple[int, int, int]] = []
    with threads.listening(lambda kernel, job: heard.append(tuple(array("q", job)[:3]))):
        silu_and_mul(torch.randn(3, 64))
        with threads.listening(None):
            silu_and_mul(torch.randn(3, 64))
        silu_and_mul(torch.randn(1000, 256))
    silu_and_mul(torch.randn(3, 64))
    assert [head[:2] for head in heard] == [(0, 0), (0, 0)]
    assert heard[0][2] == 1 < heard[1][2]
