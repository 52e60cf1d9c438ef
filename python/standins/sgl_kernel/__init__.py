"""Stand-in for sgl_kernel: its CPU build is not on the package index.

What the engine calls on a CPU whatever its instruction set is written with torch: in
``_torch_versions`` a copy, when cached tokens move, and in ``ascend_gguf.cpu.delta_net`` what
linear attention needs; in ``_threads`` what the engine calls on ARM.  Everything else is missing by
name.  So is ``torch.ops.sgl_kernel.convert_weight_packed``, which tells the engine to keep to plain
torch.
"""

import sys

import torch

from ascend_gguf_standins import stand_in_for

from . import _linear_attention, _threads
from ._torch_versions import copy_all_layer_kv_cache_cpu

_linear_attention.provide()
_threads.provide()

__all__ = ["copy_all_layer_kv_cache_cpu"]

stand_in_for("sgl_kernel", "the CPU build of sgl_kernel is not on the package index.")

# Operators that the engine's model of Grok names as it is imported.
for _name in ("fused_moe_router_cpu", "rmsnorm_cpu", "fused_dual_residual_rmsnorm_cpu"):
    setattr(torch.ops.sgl_kernel, _name, getattr(sys.modules[__name__], _name))
