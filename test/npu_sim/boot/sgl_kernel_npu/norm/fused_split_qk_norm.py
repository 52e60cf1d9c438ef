import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "fused_split_qk_norm",
    "(Tensor x, Tensor q_weight, Tensor k_weight, int q_size, int k_size, float eps) "
    "-> (Tensor, Tensor, Tensor)",
)
def _kernel(x, q_weight, k_weight, q_size, k_size, eps):
    def norm(part, weight):
        wide = part.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (wide * scale * weight.float()).to(x.dtype)

    q, k, rope = x.split([q_size, k_size, x.shape[-1] - q_size - k_size], -1)
    return norm(q, q_weight), norm(k, k_weight).unsqueeze(1), rope.unsqueeze(1).contiguous()


def fused_split_qk_norm(x, q_norm, k_norm, q_lora_rank, kv_lora_rank, qk_rope_head_dim, eps):
    """Latent vectors of DeepSeek's queries and keys, both normalised, and the keys' rotary part."""
    return _kernel(x, q_norm.weight, k_norm.weight, q_lora_rank, kv_lora_rank, eps)
