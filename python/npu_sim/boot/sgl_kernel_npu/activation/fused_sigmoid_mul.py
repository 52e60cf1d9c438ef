import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel("fused_sigmoid_mul_broadcast", "(Tensor x, Tensor gate) -> Tensor")
def fused_sigmoid_mul_broadcast(x, gate):
    """``x * sigmoid(gate)``, one gate a row: the gate of a shared expert."""
    return (x.float() * torch.sigmoid(gate.float())).to(x.dtype)


@device_kernel("fused_sigmoid_mul", "(Tensor x, Tensor gate) -> Tensor")
def fused_sigmoid_mul(x, gate):
    """``x * sigmoid(gate)``."""
    return (x.float() * torch.sigmoid(gate.float())).to(x.dtype)
