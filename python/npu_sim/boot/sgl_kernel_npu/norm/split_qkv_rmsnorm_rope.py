"""Split of a fused q,k,v projection with RMSNorm of each head of q and k, and rotary embedding of
the first numbers of each head, as many as there are sines.
"""

import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "split_qkv_rmsnorm_rope",
    "(Tensor input, Tensor sin, Tensor cos, int q_hidden_size, int kv_hidden_size, int head_dim, "
    "float? eps=None, Tensor? q_weight=None, Tensor? k_weight=None, Tensor? q_bias=None, "
    "Tensor? k_bias=None, bool is_neox_style=True) -> (Tensor, Tensor, Tensor)",
)
def split_qkv_rmsnorm_rope(
    input, sin, cos, q_hidden_size, kv_hidden_size, head_dim, eps=None, q_weight=None,
    k_weight=None, q_bias=None, k_bias=None, is_neox_style=True,
):  # fmt: skip
    n = input.shape[0]
    q, k, v = input.split([q_hidden_size, kv_hidden_size, kv_hidden_size], -1)
    cos, sin = cos.reshape(n, 1, -1).float(), sin.reshape(n, 1, -1).float()
    if not is_neox_style:  # neighbours turn together, as far as the first half of a row says
        cos, sin = (x[..., : x.shape[-1] // 2].repeat_interleave(2, -1) for x in (cos, sin))

    def norm_and_rotate(x, weight, bias):
        x = x.reshape(n, -1, head_dim).float()
        if weight is not None:
            x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
        if bias is not None:
            x = x + bias.float()
        x, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        if is_neox_style:
            first, second = x.chunk(2, -1)
            turned = torch.cat([-second, first], -1)
        else:
            turned = torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)
        x = torch.cat([x * cos + turned * sin, rest], -1)
        return x.to(input.dtype).reshape(n, -1)

    return (
        norm_and_rotate(q, q_weight, q_bias),
        norm_and_rotate(k, k_weight, k_bias),
        v.contiguous(),
    )


@device_kernel(
    "split_gate",
    "(Tensor qkv, int q_size, int kv_size, int head_dim) -> (Tensor, Tensor)",
)
def _split_gate(qkv, q_size, kv_size, head_dim):
    q, rest = qkv.split([2 * q_size, 2 * kv_size], -1)
    q, gate = q.reshape(len(q), -1, 2, head_dim).unbind(2)
    return torch.cat((q.flatten(1), rest), -1), gate.reshape(len(q), -1)


@device_kernel("plus_one", "(Tensor weight) -> Tensor")
def _plus_one(weight):
    return weight.float() + 1


def split_qkvgate_gemma_rmsnorm_rope(
    input, sin, cos, q_hidden_size, kv_hidden_size, head_dim, rope_dim, *, eps, q_weight, k_weight
):
    """The same of a projection that has a gate beside each query, with Gemma's norm."""
    qkv, gate = _split_gate(input, q_hidden_size, kv_hidden_size, head_dim)
    if sin.shape[-1] != rope_dim:
        raise ValueError(f"{sin.shape[-1]} sines to turn {rope_dim} numbers")
    weights = _plus_one(q_weight), _plus_one(k_weight)
    sizes = q_hidden_size, kv_hidden_size, head_dim
    q, k, v = split_qkv_rmsnorm_rope(qkv, sin, cos, *sizes, eps, *weights)
    return q, k, v, gate
