"""What multiplies with packed weights on this device, and how they are held."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from sglang.srt.layers.quantization.gguf import GGUFConfig
from sglang.srt.utils import is_npu

from ascend_gguf.cpu.linear import BlocksExperts, BlocksLinear
from ascend_gguf.npu import roles
from ascend_gguf.npu.channel_int8 import ChannelInt8, NPUChannelLinear
from ascend_gguf.npu.choice import Choice
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPULinear
from ascend_gguf.npu.products import EXPERTS, LINEAR, TRY, YES, this_product
from ascend_gguf.npu.self_check import experts_mismatch, linear_mismatch
from ascend_gguf.npu.trial import try_layout
from ascend_gguf.srt.hardware_backend.npu.quantization.moe_methods import NPUGGUFMoEMethod
from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.linear_kernel import EmbeddingKernel, LinearKernel
from ascend_gguf.weights.pending import Order
from ascend_gguf.weights.tuned import Preferences

logger = logging.getLogger(__name__)

NPUKernel = TypeVar("NPUKernel", bound=LinearKernel)


def linear_kernel(quant_config: GGUFConfig, dtype: torch.dtype) -> LinearKernel | None:
    """What multiplies with packed weights on this device; None: weights are dense."""
    if not is_npu():
        return BlocksLinear() if _packs(quant_config) else None
    return _with_taken_layouts(roles.linear_kernel(choice_of(quant_config)), quant_config, dtype)


def output_kernel(quant_config: GGUFConfig, dtype: torch.dtype) -> LinearKernel | None:
    """As :func:`linear_kernel`, for the output matrix: on the host not rounded either."""
    if not is_npu():
        return embedding_kernel(quant_config, dtype)
    return _with_taken_layouts(roles.output_kernel(choice_of(quant_config)), quant_config, dtype)


def embedding_kernel(quant_config: GGUFConfig, dtype: torch.dtype) -> EmbeddingKernel | None:
    """As :func:`output_kernel`, for an embedding, which may be the output matrix too."""
    if not is_npu():
        return BlocksLinear(torch.float32) if _packs(quant_config) else None
    return _with_taken_layouts(roles.embedding_kernel(choice_of(quant_config)), quant_config, dtype)


#: What gives the kernel of a weight, by the weight's role.
KERNELS: dict[str, Callable[[GGUFConfig, torch.dtype], LinearKernel | None]] = {
    "linear": linear_kernel,
    "output": output_kernel,
    "embedding": embedding_kernel,
}


def expert_layouts(quant_config: GGUFConfig, dtype: torch.dtype) -> tuple[type[Layout], ...]:
    """The packed layouts of experts on this device, narrowest first; none: they are dense."""
    if is_npu():
        return _taken(EXPERTS, EXPERT_LAYOUTS, quant_config, dtype)
    return BlocksExperts.layouts if _packs(quant_config) else ()


def _with_taken_layouts(
    kernel: NPUKernel, quant_config: GGUFConfig, dtype: torch.dtype
) -> NPUKernel | None:
    kernel.layouts = _taken(LINEAR, kernel.layouts, quant_config, dtype)
    kernel.others = this_product().layouts(LINEAR, kernel.others)
    return kernel if kernel.layouts else None


def _taken(
    operator: str, layouts: Sequence[type[Layout]], quant_config: GGUFConfig, dtype: torch.dtype
) -> tuple[type[Layout], ...]:
    """Those of the layouts that an operator of this NPU takes."""
    if not _packs(quant_config) or dtype not in (torch.float16, torch.bfloat16):
        return ()
    answers = {layout: this_product().answer(operator, layout) for layout in layouts}
    return tuple(
        layout
        for layout, answer in answers.items()
        if answer == YES or (answer == TRY and works(operator, layout, dtype))
    )


@functools.cache
def works(operator: str, layout: type[Layout], dtype: torch.dtype) -> bool:
    """Whether a small weight is multiplied right; said in the log."""

    def check(trial: Layout) -> str | None:
        if operator == EXPERTS:
            return experts_mismatch(NPUGGUFMoEMethod(trial, None).product, trial)
        kernel = NPUChannelLinear() if layout is ChannelInt8 else NPULinear()
        return linear_mismatch(kernel, trial, is_embedding=False)

    with torch.device("cpu"):
        problem = try_layout(layout, dtype, check, torch.device("npu"), operator == EXPERTS)
    logger.info(
        "%s weights, which %s may not take, are %s",
        layout.name,
        torch.npu.get_device_name(),
        f"not used: {problem}" if problem else "used: the trial is right",
    )
    return problem is None


def order(quant_config: GGUFConfig, role: str, kernel: LinearKernel | None = None) -> Order:
    """The order of the layouts of a weight, as the device decided: see ``weights.tuned``.

    Args:
        role: one of :data:`KERNELS`, or ``experts``.
    """
    preferences = getattr(quant_config, "preferences", Preferences())
    return functools.partial(preferences.order, role, () if kernel is None else kernel.others)


def _packs(quant_config: GGUFConfig) -> bool:
    return choice_of(quant_config).weights != "dense"


def choice_of(quant_config: GGUFConfig) -> Choice:
    """What the loader chose for the model whose configuration this is."""
    return getattr(quant_config, "choice", Choice())
