"""Attention of Mellum 2 on an NPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.utils import is_npu

from ascend_gguf.srt.overrides import override_methods


def repair_attention(attention: Any, config: Any) -> None:
    """``MellumAttention``: on an NPU as elsewhere, where the engine has nothing.

    Its fused operator takes sines and cosines that the first layer has computed for all.
    """
    if is_npu():
        override_methods(attention, forward_prepare_npu=_prepare)


def _prepare(original: Callable, self: Any, *args: Any, **kwargs: Any) -> Any:
    return self.forward_prepare_native(*args, **kwargs)
