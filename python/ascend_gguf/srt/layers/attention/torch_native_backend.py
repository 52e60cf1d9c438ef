"""Capped scores and sinks in the engine's attention backend for the CPU, which knows neither."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import RadixAttention

from ascend_gguf.kernels.attention import attend


def _remember_layer(
    original: Callable,
    self: TorchNativeAttnBackend,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layer: RadixAttention,
    *args: Any,
    sinks: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    # The functions that attend are not told of the layer.
    cap = 0.0 if layer.is_cross_attention else layer.logit_cap
    self.ascend_gguf_extras = {"cap": cap, "sinks": sinks} if cap or sinks is not None else {}
    return original(self, q, k, v, layer, *args, **kwargs)


forward_extend = forward_decode = _remember_layer


def _run_sdpa_forward_extend(
    original: Callable, self: TorchNativeAttnBackend, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """AROUND the engine's attention of new tokens, some of a request's or all."""
    if not self.ascend_gguf_extras:
        return original(self, *args, **kwargs)
    *common, _prefix_lens, new_lens, _encoder_lens = args
    return _attend(self, *common, new_lens, **kwargs)


def _run_sdpa_forward_decode(
    original: Callable, self: TorchNativeAttnBackend, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """AROUND the engine's attention of one new token of each request."""
    if not self.ascend_gguf_extras:
        return original(self, *args, **kwargs)
    *common, _encoder_lens = args
    return _attend(self, *common, torch.ones_like(common[-1]), **kwargs)


def _attend(
    backend: TorchNativeAttnBackend,
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    new_lens: torch.Tensor,
    *,
    scaling: float,
    sliding_window_size: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """The engine's arguments; ``new_lens`` says how many rows of ``query`` each request has."""
    start = 0
    requests = zip(req_pool_indices.tolist(), seq_lens.tolist(), new_lens.tolist(), strict=True)
    for request, length, new in requests:
        slots = req_to_token[request, :length]
        output[start : start + new] = attend(
            query[start : start + new],
            k_cache[slots],
            v_cache[slots],
            scaling,
            window=sliding_window_size,
            **backend.ascend_gguf_extras,
        )
        start += new
    return output
