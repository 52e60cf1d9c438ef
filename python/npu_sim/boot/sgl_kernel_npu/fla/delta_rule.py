"""The gated delta rule token by token, and the convolution before it: ``torch.ops.npu``.

Arguments and rules are those of sgl-kernel-npu's sources (``csrc/causal_conv1d``,
``csrc/recurrent_gated_delta_rule``); those of ``chunk_gated_delta_rule`` are not to be found, and
not checked.  States are ``[value_heads, value_size, key_size]``, as in the cache.
"""

import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)

CHUNK = 64

# Tokens of a request that the recurrent rule takes at once.
MOST_DRAFTED = 8


def check(holds, rule):
    """Raises RuntimeError, as the package's operators do: a rule does not hold."""
    if not holds:
        raise RuntimeError(rule)


def recurrence(state, q, k, v, g, beta):
    """Outputs of tokens of one request, and the state before each and after all of them.

    ``q``, ``k``: ``[tokens, key_heads, size]``, normed and scaled; ``g``, ``beta``: ``[tokens,
    value_heads]``; all float32.
    """
    share = v.shape[1] // k.shape[1]
    q, k = q.repeat_interleave(share, 1), k.repeat_interleave(share, 1)
    states, out = [state], torch.empty_like(v)
    for token in range(len(v)):
        state = state * g[token].exp()[:, None, None]
        error = v[token] - torch.einsum("hvk,hk->hv", state, k[token])
        update = torch.einsum("hv,hk->hvk", beta[token][:, None] * error, k[token])
        state = state + update
        out[token] = torch.einsum("hvk,hk->hv", state, q[token])
        states.append(state)
    return out, states


def normed(x):
    """Each row at a length of one."""
    return x.float() * torch.rsqrt(x.float().square().sum(-1, keepdim=True) + 1e-6)


@device_kernel(
    "chunk_gated_delta_rule",
    "(Tensor q, Tensor k, Tensor v, *, Tensor beta, Tensor initial_state, "
    "Tensor actual_seq_lengths, float scale, Tensor(a!) chunk_state, Tensor g) -> (Tensor, Tensor)",
    "npu",
)
def chunk_gated_delta_rule(
    q, k, v, *, beta, initial_state, actual_seq_lengths, scale, chunk_state, g
):
    """Prompts: also the state at the beginning of each chunk, of all requests."""
    out, last, first, chunk = torch.empty_like(v), initial_state.clone(), 0, 0
    for request, count in enumerate(actual_seq_lengths.tolist()):
        rows = slice(first, first + count)
        arguments = (x[rows].float() for x in (q * scale, k, v, g, beta))
        found, states = recurrence(initial_state[request].float(), *arguments)
        out[rows], last[request] = found.to(v.dtype), states[-1].to(last.dtype)
        for state in states[:-1:CHUNK]:
            chunk_state[chunk] = state.to(chunk_state.dtype)
            chunk += 1
        first += count
    return out, last


@device_kernel(
    "causal_conv1d",
    "(Tensor x, Tensor weight, *, Tensor(a!) conv_states, Tensor? bias=None, "
    "Tensor query_start_loc, Tensor cache_indices, Tensor? has_initial_state=None, "
    "Tensor? num_accepted_tokens=None, int activation_mode=0, int pad_slot_id=-1, "
    "int run_mode=0) -> Tensor",
    "npu",
)
def causal_conv1d(
    x,
    weight,
    *,
    conv_states,
    bias=None,
    query_start_loc,
    cache_indices,
    has_initial_state=None,
    num_accepted_tokens=None,
    activation_mode=0,
    pad_slot_id=-1,
    run_mode=0,
):
    """``x [tokens, channels]`` by ``weight [width, channels]``; the cache has the last inputs.

    Of drafted tokens the cache keeps all inputs: it is longer, the last ones accepted may be
    followed by others, and the width is 4.
    """
    check(x.dtype in (torch.bfloat16, torch.float16), "Only BF16 and FP16 are supported")
    for name, tensor in (("weight", weight), ("conv_states", conv_states)):
        check(tensor.dtype == x.dtype, f"{name} dtype must match x dtype")
        check(tensor.is_contiguous(), f"{name} must be contiguous")
    check(x.is_contiguous(), "x must be contiguous")
    kept, spare = len(weight) - 1, conv_states.shape[1] + 1 - len(weight)
    check(1 <= kept <= 3, "Only support width in [2,4]")
    if num_accepted_tokens is not None and kept != 3:
        raise NotImplementedError("causal_conv1d forgets drafted tokens, if its width is not 4")
    out, starts = torch.empty_like(x), query_start_loc.tolist()
    for request, slot in enumerate(cache_indices.tolist()):
        rows = slice(starts[request], starts[request + 1])
        if slot == pad_slot_id or rows.start == rows.stop:
            continue
        first = 0
        if num_accepted_tokens is not None:
            first = min(max(int(num_accepted_tokens[request]) - 1, 0), spare)
        before = conv_states[slot, first : first + kept]
        if has_initial_state is not None and not has_initial_state[request]:
            before = torch.zeros_like(before)
        padded = torch.cat((before, x[rows]))
        inputs = padded[-kept:] if num_accepted_tokens is None else padded[1:]
        conv_states[slot, : len(inputs)] = inputs
        padded = padded.float()
        found = (padded.unfold(0, len(weight), 1) * weight.float().T).sum(-1)
        if bias is not None:
            found = found + bias.float()
        out[rows] = (torch.nn.functional.silu(found) if activation_mode else found).to(x.dtype)
    return out


@device_kernel(
    "recurrent_gated_delta_rule",
    "(Tensor mix_qkv, Tensor(a!) recurrent_state, *, Tensor beta, float scale, "
    "Tensor actual_seq_lengths, Tensor ssm_state_indices, int nk, int nv, "
    "Tensor(b!)? intermediate_state=None, Tensor? cache_indices=None, "
    "Tensor? num_accepted_tokens=None, Tensor? g=None) -> Tensor",
    "npu",
)
def recurrent_gated_delta_rule(
    mix_qkv,
    recurrent_state,
    *,
    beta,
    scale,
    actual_seq_lengths,
    ssm_state_indices,
    nk,
    nv,
    intermediate_state=None,
    cache_indices=None,
    num_accepted_tokens=None,
    g=None,
):
    """A few tokens of each request, ``mix_qkv [requests, tokens, ...]``: all states are kept.

    They go to ``intermediate_state``, at the places of ``ssm_state_indices``, and the first comes
    from ``recurrent_state``.  ``beta`` is before its sigmoid.
    """
    requests, tokens, width = mix_qkv.shape
    for name, x in (("mix_qkv", mix_qkv), ("recurrent_state", recurrent_state), ("beta", beta)):
        check(x.dtype == torch.bfloat16, f"{name} must be of bfloat16")
    check(tokens <= MOST_DRAFTED, f"more than {MOST_DRAFTED} tokens of a request")
    values, keys = recurrent_state.shape[2:]
    check(width == 2 * nk * keys + nv * values, "mix_qkv width mismatch")
    check(recurrent_state.shape[1] == nv, "State third dimension must match nv")
    check(beta.shape == (requests, tokens, nv), "Beta must be (B, S, nv)")
    check(ssm_state_indices.shape == (requests, tokens), "ssm_state_indices must be (B, S)")
    if intermediate_state is None or num_accepted_tokens is None or g is None:
        raise NotImplementedError("this recurrent_gated_delta_rule is not in the simulation")
    check(num_accepted_tokens.eq(1).all(), "the first state is not that of the request")
    check(actual_seq_lengths.eq(tokens).all(), "requests of different lengths")
    q, k, v = mix_qkv.split([nk * keys, nk * keys, nv * values], -1)
    q, k = (normed(x.unflatten(-1, (nk, keys))) for x in (q, k))
    v, out = v.unflatten(-1, (nv, values)).float(), mix_qkv.new_empty(requests, tokens, nv, values)
    rates, places = beta.float().sigmoid(), ssm_state_indices.tolist()
    for request, slot in enumerate(cache_indices.tolist()):
        arguments = (x[request] for x in (q * scale, k, v, g.float(), rates))
        found, states = recurrence(recurrent_state[slot].float(), *arguments)
        out[request] = found.to(out.dtype)
        for place, state in zip(places[request], states[1:], strict=True):
            intermediate_state[place] = state.to(intermediate_state.dtype)
    return out
