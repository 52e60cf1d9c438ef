"""Which devices the patch serves."""

from __future__ import annotations

from sglang.srt.utils import is_cpu, is_npu


def uses_ascend_methods() -> bool:
    """True on an Ascend NPU and on the CPU engine; elsewhere every hook steps aside."""
    return is_npu() or is_cpu()
