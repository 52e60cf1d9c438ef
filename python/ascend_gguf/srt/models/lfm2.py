"""The short convolution of LFM2 on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.utils import is_cpu

from ascend_gguf.cpu.causal_conv import causal_conv1d_fn, causal_conv1d_update
from ascend_gguf.srt.overrides import override_methods, seeing


def repair_convolution(convolution: Any, config: Any) -> None:
    """``Lfm2ShortConv`` and ``Lfm2MoeShortConv``: the engine's operators are Triton kernels."""
    if is_cpu():
        override_methods(convolution, forward=_forward)


def _forward(original: Callable, self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    ours = {
        "causal_conv1d_fn": causal_conv1d_fn,
        "causal_conv1d_update": causal_conv1d_update,
    }
    return seeing(original, **ours)(self, *args, **kwargs)
