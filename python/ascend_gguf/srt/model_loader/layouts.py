"""The layouts of a model's weights: chosen before loading, checked and reported after it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator

import torch
from sglang.srt.runtime_context import get_schedule
from sglang.srt.utils import is_npu
from torch import nn

from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.nibble_planes import WidePlanes
from ascend_gguf.npu.products import this_product
from ascend_gguf.npu.self_check import SelfCheck
from ascend_gguf.reader import open_gguf
from ascend_gguf.srt.layers.quantization.gguf import PackedWeights
from ascend_gguf.weights.layout import NOT_QUANTIZED
from ascend_gguf.weights.report import Holding, table

logger = logging.getLogger(__name__)

#: What DeepSeek's attention makes of ``kv_b_proj`` beside it (``post_load_weights``).
_COPIES = ("w_kc", "w_vc")


def serves_few() -> bool:
    """Whether every decoding step has as few inputs as the template for wide planes takes."""
    if not is_npu() or not this_product().reads_planes:
        return False
    most = get_schedule().max_running_requests
    return most is not None and most <= WidePlanes.most_inputs


def verify(model: nn.Module, path: str, on_mismatch: str) -> Counter[str]:
    """Self-check: multiply once with a packed weight of each shape, and compare with dense weights.

    Where it fails, weights of that layout and shape get the next layout that passes, or dense
    weights, or loading stops.  Returns how many layouts and shapes passed and failed.

    Raises:
        GGUFError: the self-check failed, and ``on_mismatch`` is ``stop``.
    """

    def fail(problem: str) -> None:
        if on_mismatch == "stop":
            raise GGUFError(
                f"this device does not multiply with packed weights as it should: {problem}",
                file=path,
                hint='Install another release of CANN, or load with {"weights": "dense"}.',
            )

    check = SelfCheck(fail)
    for module in model.modules():
        method = getattr(module, "quant_method", None)
        if isinstance(method, PackedWeights):
            method.self_check(module, check)
    for module in model.modules():
        for layout in vars(module).get("gguf_layouts", {}).values():
            layout.source = None
    return check.results


def report(model: nn.Module, path: str, dtype: torch.dtype) -> None:
    """Log what the weights take, and which could not stay packed and why."""
    for name, module in model.named_modules():
        for weight, unsupported in vars(module).get("gguf_unsupported", {}).items():
            if unsupported and set(unsupported.values()) != {NOT_QUANTIZED}:
                why = "; ".join(f"not {layout}: {reason}" for layout, reason in unsupported.items())
                logger.info("%s.%s has dense weights (%s)", name, weight, why)
    file_bytes = sum(tensor.nbytes for tensor in open_gguf(path).tensors.values())
    lines = table(holdings(model), file_bytes, 8 * dtype.itemsize)
    logger.info("The weights on the device (this rank's, beside the whole file):\n%s", lines)


def holdings(model: nn.Module) -> Iterator[Holding]:
    """Every weight of a model in place; tensors that several of them share count once."""
    counted, shared = set(), {}
    for module in model.modules():
        for layout in vars(module).get("gguf_layouts", {}).values():
            places = {tensor.data_ptr() for tensor in layout.tensors.values()}
            if not places <= counted:  # an output matrix may be the embedding
                yield Holding(layout.name, torch.Size(layout.shape).numel(), layout.nbytes)
            counted |= places
            shared |= {tensor.data_ptr(): tensor for tensor in layout.shared.values()}
        for name in _COPIES:
            if isinstance(copy := vars(module).get(name), torch.Tensor):
                yield Holding("latent copies", 0, copy.nbytes)
    for tensor in shared.values():
        yield Holding("shared offsets", 0, tensor.nbytes)
    for parameter in model.parameters():
        if parameter.data_ptr() not in counted:
            counted.add(parameter.data_ptr())
            layout = "dense" if parameter.dim() > 1 else "vectors"
            yield Holding(layout, parameter.numel(), parameter.nbytes)
