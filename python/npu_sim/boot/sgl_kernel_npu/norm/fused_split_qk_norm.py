"""Split of what DeepSeek's attention projects first, with RMSNorm of latent queries and keys."""

import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "fused_split_qk_norm",
    "(Tensor x, Tensor q_weight, Tensor k_weight, int q_rank, int kv_rank, int rope, float eps)"
    " -> (Tensor, Tensor, Tensor)",
)
def _kernel(x, q_weight, k_weight, q_rank, kv_rank, rope, eps):
    q, k, rest = x.split([q_rank, kv_rank, rope], -1)

    def normed(y, weight):
        y = y.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps) * weight.float()
        return y.to(x.dtype)

    return normed(q, q_weight), normed(k, k_weight), rest.contiguous()


def fused_split_qk_norm(
    fused_qkv_a_proj_out,
    q_a_layernorm,
    kv_a_layernorm,
    q_lora_rank,
    kv_lora_rank,
    qk_rope_dim,
    eps=1e-6,
):
    """Of modules without a bias; the latent keys and the rest get a dimension for one head."""
    sizes = q_lora_rank, kv_lora_rank, qk_rope_dim
    weights = q_a_layernorm.weight, kv_a_layernorm.weight
    q, k, rest = _kernel(fused_qkv_a_proj_out, *weights, *sizes, eps)
    return q, k.unsqueeze(1), rest.unsqueeze(1)
