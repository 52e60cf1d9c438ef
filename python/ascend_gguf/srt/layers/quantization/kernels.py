"""What multiplies with packed weights on this device, and how they are held."""

from __future__ import annotations

import torch
from sglang.srt.layers.quantization.gguf import GGUFConfig
from sglang.srt.utils import is_npu

from ascend_gguf.cpu.linear import BlocksExperts, BlocksLinear
from ascend_gguf.npu.choice import Choice
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPUExactLinear, NPULinear, has_operators
from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.linear_kernel import LinearKernel


def linear_kernel(quant_config: GGUFConfig, dtype: torch.dtype) -> LinearKernel | None:
    """What multiplies with packed weights on this device; None: weights are dense."""
    if not is_npu():
        return BlocksLinear() if _packs(quant_config) else None
    if not _packs_on_npu(quant_config, dtype):
        return None
    return NPULinear() if choice_of(quant_config).nearly else NPUExactLinear()


def embedding_kernel(quant_config: GGUFConfig, dtype: torch.dtype) -> LinearKernel | None:
    """As :func:`linear_kernel`, for the embedding and the output matrix.

    The error of an output matrix is all in the logits, and it is one product of many: always exact,
    and on the host not rounded either.
    """
    if not is_npu():
        return BlocksLinear(torch.float32) if _packs(quant_config) else None
    return NPUExactLinear() if _packs_on_npu(quant_config, dtype) else None


def expert_layouts(quant_config: GGUFConfig, dtype: torch.dtype) -> tuple[type[Layout], ...]:
    """The packed layouts of experts on this device, narrowest first; none: they are dense."""
    if is_npu():
        return EXPERT_LAYOUTS if _packs_on_npu(quant_config, dtype) else ()
    return BlocksExperts.layouts if _packs(quant_config) else ()


def _packs_on_npu(quant_config: GGUFConfig, dtype: torch.dtype) -> bool:
    has_dtype = dtype in (torch.float16, torch.bfloat16)
    return _packs(quant_config) and has_dtype and has_operators()


def _packs(quant_config: GGUFConfig) -> bool:
    return choice_of(quant_config).weights != "dense"


def choice_of(quant_config: GGUFConfig) -> Choice:
    """What the loader chose for the model whose configuration this is."""
    return getattr(quant_config, "choice", Choice())
