"""States of drafted tokens, as sgl-kernel-npu keeps them until some are accepted."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.npu_sim(soc="910B3", devices=1)

BF16 = torch.bfloat16
LAYERS, SLOTS, DRAFTED, WIDTH = 2, 5, 4, 4
KEY_HEADS, VALUE_HEADS, SIZE = 2, 4, 16
CHANNELS = (2 * KEY_HEADS + VALUE_HEADS) * SIZE


def _kernels():
    import sgl_kernel_npu.fla.delta_rule as operators
    import sgl_kernel_npu.mamba.mamba_state_update_triton as kernels

    assert operators.MOST_DRAFTED == 8  # which is registered when it is imported
    return kernels


def _random(*shape: int, dtype: torch.dtype = BF16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def _ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32).npu()


def _convolve(inputs, weight, states, accepted=None, **changes):
    _kernels()
    asked = {
        "conv_states": states,
        "query_start_loc": _ints(*range(0, len(inputs) + 1, DRAFTED)),
        "cache_indices": _ints(3, 1),
        "num_accepted_tokens": accepted,
        "run_mode": 1,
    }
    return torch.ops.npu.causal_conv1d(inputs, weight, **(asked | changes))


def test_a_convolution_goes_on_from_the_last_token_accepted():
    """Of two requests 3 and 1 of 4 drafted tokens are accepted, then 4 others follow."""
    weight, before = _random(WIDTH, CHANNELS), _random(SLOTS, WIDTH - 1, CHANNELS)
    states = torch.zeros(1, SLOTS, WIDTH - 1 + DRAFTED - 1, CHANNELS, dtype=BF16)
    states[0, :, -(WIDTH - 1) :] = before
    states, accepted = states.npu(), _ints(DRAFTED, DRAFTED)
    first, second = _random(2 * DRAFTED, CHANNELS), _random(2 * DRAFTED, CHANNELS) * 2
    _convolve(first.npu(), weight.npu(), states[0], accepted)
    steps = torch.tensor([2, 0]).npu()
    _kernels().conv_state_rollback(states, torch.tensor([3, 1]).npu(), steps, DRAFTED)
    found = _convolve(second.npu(), weight.npu(), states[0], accepted).cpu().float()
    for i, (slot, kept) in enumerate(((3, 3), (1, 1))):
        rows = slice(i * DRAFTED, (i + 1) * DRAFTED)
        inputs = torch.cat((before[slot], first[rows][:kept], second[rows])).float()
        right = torch.nn.functional.conv1d(
            inputs.T[None], weight.float().T[:, None], groups=CHANNELS
        )[0].T[-DRAFTED:]
        torch.testing.assert_close(found[rows], right, rtol=0.02, atol=0.02)


def _rule(mixed, state, kept, **changes):
    _kernels()
    requests = len(mixed)
    places = torch.arange(requests * DRAFTED, dtype=torch.int32).view(requests, DRAFTED)
    asked = {
        "beta": _random(requests, DRAFTED, VALUE_HEADS).npu(),
        "g": -_random(requests, DRAFTED, VALUE_HEADS, dtype=torch.float32).abs().npu(),
        "scale": SIZE**-0.5,
        "actual_seq_lengths": _ints(*[DRAFTED] * requests),
        "ssm_state_indices": places.npu(),
        "nk": KEY_HEADS,
        "nv": VALUE_HEADS,
        "intermediate_state": kept,
        "cache_indices": _ints(3, 1)[:requests],
        "num_accepted_tokens": _ints(*[1] * requests),
    }
    return torch.ops.npu.recurrent_gated_delta_rule(mixed, state, **(asked | changes))


def test_a_state_after_each_drafted_token_is_kept():
    mixed, state = _random(2, DRAFTED, CHANNELS), _random(SLOTS, VALUE_HEADS, SIZE, SIZE)
    kept = torch.zeros(2 * DRAFTED, VALUE_HEADS, SIZE, SIZE, dtype=BF16).npu()
    beta = _random(2, DRAFTED, VALUE_HEADS).float().sigmoid()
    decay = (-_random(2, DRAFTED, VALUE_HEADS, dtype=torch.float32).abs()).exp()
    found = _rule(mixed.npu(), state.npu(), kept).cpu().float()
    for request, slot in enumerate((3, 1)):
        memory = state[slot].float()
        for token in range(DRAFTED):
            heads = mixed[request, token].float().view(-1, SIZE)
            q, k, v = heads.split([KEY_HEADS, KEY_HEADS, VALUE_HEADS])
            q, k = (
                torch.nn.functional.normalize(x, dim=-1).repeat_interleave(2, 0) for x in (q, k)
            )
            memory = memory * decay[request, token][:, None, None]
            missing = v - (memory * k[:, None]).sum(-1)
            memory = memory + (beta[request, token][:, None] * missing)[..., None] * k[:, None]
            right = (memory * q[:, None]).sum(-1) * SIZE**-0.5
            torch.testing.assert_close(found[request, token], right, rtol=0.02, atol=0.02)
            there = kept[request * DRAFTED + token].cpu().float()
            torch.testing.assert_close(there, memory, rtol=0.02, atol=0.02)


def test_the_state_of_the_last_token_accepted_is_taken():
    states = torch.zeros(LAYERS, SLOTS, VALUE_HEADS, SIZE, SIZE).npu()
    kept = _random(LAYERS, 2, DRAFTED, VALUE_HEADS, SIZE, SIZE, dtype=torch.float32)
    indices = (torch.tensor(x).npu() for x in ([3, 1], [0, 1], [2, -1]))
    _kernels().move_intermediate_cache(states, kept.npu(), *indices)
    assert torch.equal(states[:, 3].cpu(), kept[:, 0, 2])
    assert not states[:, 1].cpu().any()


BROKEN = {
    "Only BF16 and FP16": lambda x, w, s: (x.float(), w, s),
    "weight dtype must match": lambda x, w, s: (x, w.half(), s),
    "conv_states dtype must match": lambda x, w, s: (x, w, s.float()),
    "x must be contiguous": lambda x, w, s: (x.repeat(1, 2)[:, ::2], w, s),
    "conv_states must be contiguous": lambda x, w, s: (x, w, s.repeat(1, 2, 1)[:, ::2]),
    r"Only support width in \[2,4\]": lambda x, w, s: (x, w.repeat(2, 1), s),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_convolution_is_refused(rule):
    given = _random(2 * DRAFTED, CHANNELS).npu(), _random(WIDTH, CHANNELS).npu()
    states = _random(SLOTS, WIDTH - 1, CHANNELS).npu()
    _convolve(*given, states)
    with pytest.raises(RuntimeError, match=rule):
        _convolve(*BROKEN[rule](*given, states))


BROKEN_RULES = {
    "mix_qkv must be of bfloat16": lambda m, s: (m.half(), s, {}),
    "recurrent_state must be of bfloat16": lambda m, s: (m, s.float(), {}),
    "mix_qkv width mismatch": lambda m, s: (m[..., :-1].contiguous(), s, {}),
    "more than 8 tokens": lambda m, s: (m.repeat(1, 3, 1), s, {}),
    "Beta must be": lambda m, s: (m, s, {"beta": _random(1, DRAFTED, 1).npu()}),
    "ssm_state_indices must be": lambda m, s: (m, s, {"ssm_state_indices": _ints(0)[None]}),
    "third dimension must match": lambda m, s: (m, s[:, :, :, :], {"nv": 2, "nk": 3}),
}


@pytest.mark.parametrize("rule", BROKEN_RULES)
def test_a_rule_is_refused(rule):
    mixed, state = (
        _random(1, DRAFTED, CHANNELS).npu(),
        _random(SLOTS, VALUE_HEADS, SIZE, SIZE).npu(),
    )
    kept = torch.zeros(DRAFTED, VALUE_HEADS, SIZE, SIZE, dtype=BF16).npu()
    _rule(mixed, state, kept)
    mixed, state, changes = BROKEN_RULES[rule](mixed, state)
    with pytest.raises(RuntimeError, match=rule):
        _rule(mixed, state, kept, **changes)
