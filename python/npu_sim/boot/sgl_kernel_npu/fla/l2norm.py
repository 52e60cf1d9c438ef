from sgl_kernel_npu.fla.delta_rule import normed

from npu_sim.boot.kernels import device_kernel
from npu_sim.boot.missing import missing_in

missing_in(__name__)


@device_kernel("l2norm", "(Tensor x) -> Tensor")
def l2norm_fwd(x):
    """Each row at a length of one."""
    return normed(x).to(x.dtype)
