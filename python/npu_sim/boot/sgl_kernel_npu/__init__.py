"""Stand-in for sgl_kernel_npu, whose kernels are compiled for the device.

The few that dense and MoE text models call are here, with the same arguments; every other name
imports, and raises with its full name when it is called.
"""

from npu_sim.boot.missing import missing_in

missing_in(__name__)

# Operators of torch.ops.npu, which the package registers when it is imported.
import sgl_kernel_npu.drafts  # noqa: E402, F401
from sgl_kernel_npu.fla import delta_rule  # noqa: E402, F401
