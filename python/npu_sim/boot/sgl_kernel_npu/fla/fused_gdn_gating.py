import torch

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel(
    "fused_gdn_gating", "(Tensor A_log, Tensor a, Tensor b, Tensor dt_bias) -> (Tensor, Tensor)"
)
def fused_gdn_gating_npu(A_log, a, b, dt_bias):
    """The logarithm of the decay and the rate of each token and head, float32."""
    return _decay(A_log, a, dt_bias), b.float().sigmoid()


@device_kernel(
    "fused_gdn_gating_without_sigmoid", "(Tensor A_log, Tensor a, Tensor dt_bias) -> Tensor"
)
def _logarithm_of_decay(A_log, a, dt_bias):
    return _decay(A_log, a, dt_bias).unsqueeze(0)


def _decay(A_log, a, dt_bias):
    return -A_log.float().exp() * torch.nn.functional.softplus(a.float() + dt_bias.float())


def fused_gdn_gating_kernel_without_sigmoid(A_log, a, b, dt_bias):
    """As above, but the rate as it is."""
    return _logarithm_of_decay(A_log, a, dt_bias), b
