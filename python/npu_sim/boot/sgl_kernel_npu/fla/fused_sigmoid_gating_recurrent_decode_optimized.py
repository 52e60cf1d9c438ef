import torch
from sgl_kernel_npu.fla.delta_rule import normed, recurrence

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "delta_rule_decode",
    "(Tensor A_log, Tensor dt_bias, Tensor q, Tensor k, Tensor v, Tensor a, Tensor b, "
    "Tensor(a!) states, Tensor slots) -> Tensor",
)
def _kernel(A_log, dt_bias, q, k, v, a, b, states, slots):
    g = -A_log.float().exp() * torch.nn.functional.softplus(a.float() + dt_bias.float())
    queries, keys = normed(q[0]) * q.shape[-1] ** -0.5, normed(k[0])
    values, beta, out = v[0].float(), b.float().sigmoid(), torch.zeros_like(v[0])
    for i, slot in enumerate(slots.tolist()):
        if slot < 0:  # a row of padding
            continue
        one = slice(i, i + 1)
        arguments = (x[one] for x in (queries, keys, values, g, beta))
        found, after = recurrence(states[slot].float(), *arguments)
        out[i], states[slot] = found[0].to(v.dtype), after[-1].to(states.dtype)
    return out


def fused_sigmoid_gating_delta_rule_update_decode_npu(
    *,
    A_log,
    dt_bias,
    q,
    k,
    v,
    a,
    b,
    initial_state_source,
    initial_state_indices,
    cu_seqlens,
    use_qk_l2norm_in_kernel,
    softplus_beta,
    softplus_threshold,
):
    """One token of each request; states in place."""
    if softplus_beta != 1 or not use_qk_l2norm_in_kernel:
        raise NotImplementedError("this delta rule is not in the simulation")
    states, slots = initial_state_source, initial_state_indices
    return _kernel(A_log, dt_bias, q, k, v, a, b, states, slots)
