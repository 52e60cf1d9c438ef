import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel("swiglu_oai", "(Tensor x, float alpha, float limit) -> Tensor")
def _kernel(x, alpha, limit):
    gate, up = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return ((up + 1) * gate * torch.sigmoid(alpha * gate)).to(x.dtype)


def swiglu_oai_triton(hidden_states, dim, gemm1_alpha, gemm1_clamp_limit):
    """gpt-oss's activation of ``(tokens, dim)``, gate and up in turn."""
    return _kernel(hidden_states.view(-1, dim), gemm1_alpha, gemm1_clamp_limit)
