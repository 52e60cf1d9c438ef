"""Which devices the patch serves."""

from __future__ import annotations

import torch
from sglang.srt.utils import is_cpu, is_npu

#: Dtypes that the CPU's kernels take.
_KERNEL_DTYPES = frozenset((torch.float32, torch.bfloat16, torch.float16))

_serves_gguf = False
_lost_weights: str | None = None


def uses_ascend_methods() -> bool:
    """True on an Ascend NPU and on the CPU engine; elsewhere every hook steps aside."""
    return is_npu() or is_cpu()


def serve_gguf() -> None:
    """This process serves a GGUF model, from now on with the CPU's kernels if it is on the CPU."""
    global _serves_gguf
    _serves_gguf = True


def serves_gguf() -> bool:
    """Whether this process has loaded a GGUF model: others are the engine's own affair."""
    return _serves_gguf


def set_lost_weights(problem: str | None) -> None:
    """Say why this process has no weights to compute with, or that it has some again."""
    global _lost_weights
    _lost_weights = problem


def lost_weights() -> str | None:
    """Why there are no weights to compute with; None if there are."""
    return _lost_weights


def uses_cpu_kernels(*tensors: torch.Tensor) -> bool:
    """Whether an operation on these is done by the kernels for the CPU.

    Those of other models are the engine's, and so is what ``torch.compile`` makes.
    """
    if not (_serves_gguf and is_cpu()) or torch.compiler.is_compiling():
        return False
    return all(t.dtype in _KERNEL_DTYPES and t.device.type == "cpu" for t in tensors)
