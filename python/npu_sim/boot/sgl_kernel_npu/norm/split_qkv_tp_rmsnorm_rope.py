"""Split of a fused q,k,v projection with RMSNorm over all heads of q and of k, those of other ranks
included, and rotary embedding of the first part of each head, in halves.
"""

import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "split_qkv_and_squares",
    "(Tensor qkv, int q_size, int kv_size) -> (Tensor, Tensor, Tensor, Tensor)",
)
def _split(qkv, q_size, kv_size):
    q, k, v = qkv.split([q_size, kv_size, kv_size], -1)
    squares = torch.stack([x.float().square().mean(-1) for x in (q, k)], -1)
    return q.contiguous(), k.contiguous(), v.contiguous(), squares


@device_kernel(
    "norm_and_rotate",
    "(Tensor x, Tensor squares, Tensor weight, Tensor cos, Tensor sin, int head_dim, float eps)"
    " -> Tensor",
)
def _norm_and_rotate(x, squares, weight, cos, sin, head_dim, eps):
    # Rounded between the two, as the package does.
    x = (x.float() * torch.rsqrt(squares + eps)[:, None] * weight.float()).to(x.dtype)
    heads = x.float().reshape(x.shape[0], -1, head_dim)
    half = cos.shape[-1]
    cos, sin = cos[:, None].float(), sin[:, None].float()
    first, second, rest = heads.split([half, half, head_dim - 2 * half], -1)
    turned = first * cos - second * sin, second * cos + first * sin, rest
    return torch.cat(turned, -1).to(x.dtype).reshape(x.shape)


def split_qkv_tp_rmsnorm_rope(
    input,
    cos,
    sin,
    q_hidden_size,
    kv_hidden_size,
    head_dim,
    eps,
    q_weight,
    k_weight,
    rotary_dim,
    tp_world,
    tp_group,
):
    """The first ``rotary_dim / 2`` numbers of each token's row of ``cos`` and ``sin`` count."""
    q, k, v, squares = _split(input, q_hidden_size, kv_hidden_size)
    if tp_world > 1:
        torch.distributed.all_reduce(squares, group=tp_group)
        squares = squares / tp_world
    half = rotary_dim // 2
    rest = cos[:, :half], sin[:, :half], head_dim, eps
    return (
        _norm_and_rotate(q, squares[:, 0], q_weight, *rest),
        _norm_and_rotate(k, squares[:, 1], k_weight, *rest),
        v,
    )
