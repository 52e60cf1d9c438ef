"""Convolutions by torch's operators, as on an NPU, beside torch's own of one request."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ascend_gguf.npu import causal_conv
from ascend_gguf.npu.causal_conv import Windows, convolve_prompts, convolve_step

CHANNELS = 6
#: Tokens of requests: fewer than a state has, as many, more.
LENGTHS = (1, 3, 2, 40)
SLOTS = torch.tensor([7, 2, 9, 0])
HAS_STATE = torch.tensor([True, False, True, True])


def alone(x, weight, bias, before):
    """A request's outputs, and its last inputs, ``[tokens, channels]``."""
    whole = torch.cat([before, x])
    out = F.conv1d(whole.T[None], weight[:, None], bias, groups=CHANNELS)[0].T
    return out, whole[len(whole) - len(before) :]


@pytest.mark.parametrize("width", [2, 3, 4])
@pytest.mark.parametrize("has_bias", [True, False])
def test_prompts_and_what_follows(monkeypatch, width, has_bias):
    monkeypatch.setattr(causal_conv, "_TOKENS", 16)
    torch.manual_seed(0)
    states = torch.randn(10, width - 1, CHANNELS)
    weight = torch.randn(CHANNELS, width)
    bias = torch.randn(CHANNELS) if has_bias else None
    x, more = torch.randn(sum(LENGTHS), CHANNELS), torch.randn(len(LENGTHS), CHANNELS)
    before = states.clone()
    windows = Windows(LENGTHS, width, "cpu")
    found = convolve_prompts(x, weight, bias, states, SLOTS, HAS_STATE, windows)
    for i, part in enumerate(x.split(LENGTHS)):
        expected, kept = alone(part, weight, bias, before[SLOTS[i]] * HAS_STATE[i])
        torch.testing.assert_close(found.split(LENGTHS)[i], expected)
        assert torch.equal(states[SLOTS[i]], kept)
    before = states.clone()
    found = convolve_step(more, weight, bias, states, SLOTS)
    for i in range(len(LENGTHS)):
        expected, kept = alone(more[i : i + 1], weight, bias, before[SLOTS[i]])
        torch.testing.assert_close(found[i], expected[0])
        assert torch.equal(states[SLOTS[i]], kept)
    others = [1, 3, 4, 5, 6, 8]
    assert torch.equal(states[others], before[others])
