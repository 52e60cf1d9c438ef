"""What ``ascend-gguf doctor`` asks of the engine: the patch's fit, and operators on the device."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from sglang.srt.utils import is_npu

from ascend_gguf.cpu.linear import BlocksLinear
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPULinear
from ascend_gguf.npu.products import EXPERTS, LINEAR, this_product
from ascend_gguf.npu.self_check import experts_mismatch, linear_mismatch
from ascend_gguf.npu.trial import try_layout
from ascend_gguf.srt import plugin
from ascend_gguf.weights.layout import Layout


def hooks() -> int:
    """How many functions of this engine are hooked.

    Raises:
        RuntimeError: GGUF models are refused, with the reason.
        Exception: the patch does not fit.
    """
    if reason := plugin.unknown_engine():
        raise RuntimeError(reason)
    return len(plugin.checked_hooks())


@torch.inference_mode()  # as the engine computes, whose buffers they may use
def operators() -> Iterator[tuple[str, str | None]]:
    """Each kernel that this device is documented to have, and what is wrong with it."""
    if not is_npu():
        for dtype in (torch.float32, torch.bfloat16):
            check = partial(linear_mismatch, BlocksLinear(), is_embedding=True)
            for layout in BlocksLinear.layouts:
                problem = try_layout(layout, dtype, check, torch.device("cpu"), False)
                yield f"{layout.name} in {str(dtype).removeprefix('torch.')}", problem
        return
    from ascend_gguf.srt.hardware_backend.npu.quantization.moe_methods import NPUGGUFMoEMethod
    from ascend_gguf.srt.layers.moe.topk import softmax_problem

    def check_experts(weight: Layout) -> str | None:
        return experts_mismatch(NPUGGUFMoEMethod(weight, None).product, weight)

    device, dtype, product = torch.device("npu"), torch.bfloat16, this_product()
    check = partial(linear_mismatch, NPULinear(), is_embedding=True)
    for layout in product.layouts(LINEAR, NPULinear.layouts):
        yield layout.name, try_layout(layout, dtype, check, device, False)
    for layout in product.layouts(EXPERTS, EXPERT_LAYOUTS):
        yield layout.name, try_layout(layout, dtype, check_experts, device, True)
    yield "routing of experts", softmax_problem(experts=64, chosen=8)
