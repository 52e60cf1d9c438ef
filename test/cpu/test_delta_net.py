"""The gated delta net on the CPU beside the recurrence, token by token, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ascend_gguf import torch_delta_rule
from ascend_gguf.cpu import causal_conv, delta_net
from delta_rule import (
    KEY_SIZE,
    KEYS,
    LENGTHS,
    SLOTS,
    STARTS,
    VALUE_SIZE,
    VALUES,
    recurrence,
    some_inputs,
)


@pytest.fixture(params=[(), (KEY_SIZE,)], ids=["decay of a head", "decay of each channel"])
def inputs(request) -> dict[str, torch.Tensor]:
    return some_inputs(request.param)


def test_prompts(inputs):
    expected, states = recurrence(inputs)
    gates = (inputs[name] for name in ("A_log", "a", "b", "dt_bias"))
    g, beta = torch_delta_rule.gates(*gates)
    found, *_ = delta_net.chunk_gated_delta_rule(
        *(inputs[name] for name in "qkv"),
        g,
        beta,
        initial_state=inputs["states"],
        initial_state_indices=SLOTS.int(),
        cu_seqlens=STARTS.int(),
    )
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(inputs["states"].double(), states, rtol=1e-4, atol=1e-5)


def test_decoding(inputs):
    """Token by token, what a prompt gives at once; other requests keep their states."""
    expected, states = recurrence(inputs)
    for step in range(LENGTHS[1]):
        lives = torch.tensor([step < length for length in LENGTHS])
        rows = (STARTS[:-1] + step)[lives]
        found = delta_net.fused_sigmoid_gating_delta_rule_update(
            inputs["A_log"],
            inputs["dt_bias"].flatten(),
            *(inputs[name][:, rows] for name in "qkv"),
            *(inputs[name][rows].flatten(1) for name in "ab"),
            initial_state_source=inputs["states"],
            initial_state_indices=SLOTS[lives].int(),
            cu_seqlens=torch.arange(len(rows) + 1),
        )
        torch.testing.assert_close(found[0].double(), expected[rows], rtol=1e-4, atol=1e-5)
    done = [7, 2, 1, 3, 4, 5, 6, 8]
    torch.testing.assert_close(inputs["states"].double()[done], states[done], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("by_token", [False, True])
def test_convolution(width, by_token):
    """Prompts with and without something before, then a token of each."""
    torch.manual_seed(1)
    channels, tokens = 12, int(STARTS[-1])
    x, weight, bias = torch.randn(channels, tokens), torch.randn(channels, width), torch.randn(12)
    cache, has = torch.randn(10, channels, width - 1), torch.tensor([True, False, True, False])
    cache = cache.mT.contiguous().mT if by_token else cache
    further = torch.randn(4, channels)
    expected, expected_further = torch.empty_like(x), torch.empty_like(further)
    for i, slot in enumerate(SLOTS):
        before = cache[slot] * has[i]
        whole = torch.cat((before, x[:, STARTS[i] : STARTS[i + 1]], further[i, :, None]), 1)
        out = F.silu(F.conv1d(whole[None], weight[:, None], bias, groups=channels))[0]
        expected[:, STARTS[i] : STARTS[i + 1]], expected_further[i] = out[:, :-1], out[:, -1]
    found = causal_conv.causal_conv1d_fn(
        x,
        weight,
        bias,
        activation="silu",
        conv_states=cache,
        has_initial_state=has,
        cache_indices=SLOTS.int(),
        query_start_loc=STARTS.int(),
    )
    torch.testing.assert_close(found, expected)
    arguments = (further, cache, weight, bias, "silu")
    found = causal_conv.causal_conv1d_update(*arguments, conv_state_indices=SLOTS.int())
    torch.testing.assert_close(found, expected_further)


def test_parts_of_projections():
    torch.manual_seed(2)
    sizes = (KEYS, VALUES, KEY_SIZE, VALUE_SIZE)
    mixed, values = 2 * KEYS * KEY_SIZE + VALUES * VALUE_SIZE, VALUES * VALUE_SIZE
    qkvz, ba = torch.randn(3, mixed + values), torch.randn(3, 2 * VALUES)
    qkv, z, b, a = delta_net.split_projections(qkvz, ba, *sizes)
    assert torch.equal(torch.cat((qkv, z.flatten(1)), 1), qkvz)
    assert torch.equal(torch.cat((b, a), 1), ba)
    q_and_gate, k = torch.randn(3, 4 * 2 * 8), torch.randn(3, 2 * 8)
    weights = torch.randn(2, 8)
    q, k_normed, gate = delta_net.norm_gated_queries_and_keys(q_and_gate, k, *weights, 1e-6, 8, 4)
    heads = q_and_gate.view(3, 4, 16)
    torch.testing.assert_close(gate.view(3, 4, 8), heads[..., 8:])
    expected = F.rms_norm(heads[..., :8], (8,), 1 + weights[0], 1e-6)
    torch.testing.assert_close(q.view(3, 4, 8), expected)
    expected = F.rms_norm(k.view(3, 2, 8), (8,), 1 + weights[1], 1e-6)
    torch.testing.assert_close(k_normed.view(3, 2, 8), expected)
