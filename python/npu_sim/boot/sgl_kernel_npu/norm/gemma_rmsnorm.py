import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel("gemma_rms_norm", "(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)")
def npu_gemma_rms_norm(x, weight, eps):
    """``x / rms(x) * (1 + weight)``, and the reciprocal of the root mean square."""
    wide = x.float()
    reciprocal = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * reciprocal * (1 + weight.float())).to(x.dtype), reciprocal
