"""The gated delta rule token by token, and the convolution before it: ``torch.ops.npu``.

Arguments are those of SGLang's calls.  The kernels' own rules for dtypes and sizes are not
documented, and not checked.  States are ``[value_heads, value_size, key_size]``, as in the cache.
"""

import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)

CHUNK = 64


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
    """``x [tokens, channels]`` by ``weight [width, channels]``; the cache has the last inputs."""
    if num_accepted_tokens is not None:
        raise NotImplementedError("causal_conv1d of drafted tokens is not in the simulation")
    out, starts = torch.empty_like(x), query_start_loc.tolist()
    for request, slot in enumerate(cache_indices.tolist()):
        rows = slice(starts[request], starts[request + 1])
        if slot == pad_slot_id or rows.start == rows.stop:
            continue
        before = conv_states[slot]
        if has_initial_state is not None and not has_initial_state[request]:
            before = torch.zeros_like(before)
        padded = torch.cat((before, x[rows].to(before.dtype)))
        conv_states[slot] = padded[len(padded) - len(before) :]
        padded = padded[len(before) + 1 - len(weight) :].float()
        found = (padded.unfold(0, len(weight), 1) * weight.float().T).sum(-1)
        if bias is not None:
            found = found + bias.float()
        out[rows] = (torch.nn.functional.silu(found) if activation_mode else found).to(x.dtype)
    return out
