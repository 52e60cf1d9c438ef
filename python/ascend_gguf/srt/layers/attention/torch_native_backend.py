"""The engine's attention backend for the CPU: one call for all requests, logit soft-caps and sinks.

The engine calls a function of torch for each request, and knows neither caps nor sinks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.attention.attention_registry import (
    ATTENTION_BACKENDS,
    register_attention_backend,
)
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from ascend_gguf import torch_attention
from ascend_gguf.cpu import paged_attention
from ascend_gguf.cpu.graph import host_call
from ascend_gguf.cpu.paged_attention import Tokens
from ascend_gguf.srt.device import uses_ascend_methods, uses_cpu_kernels
from ascend_gguf.srt.overrides import override

_NAME = "torch_native"


def register() -> None:
    """Let the runner of a GGUF model have this backend where the engine's is asked for."""
    create = ATTENTION_BACKENDS[_NAME]

    @register_attention_backend(_NAME)
    def create_backend(runner: Any) -> TorchNativeAttnBackend:
        backend = create(runner)
        if uses_ascend_methods() and runner.model_config.quantization == "gguf":
            override(backend)
        return backend


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
    window = layer.sliding_window_size
    both_ways = layer.attn_type == AttentionType.ENCODER_ONLY and window is not None and window > -1
    self.ascend_gguf_extras = {}
    if cap or sinks is not None or both_ways or layer.xai_temperature_len > 0:
        temperature = max(layer.xai_temperature_len, 0)
        self.ascend_gguf_extras = {"cap": cap, "sinks": sinks, "temperature": temperature}
    if both_ways:  # of which the functions are not told either
        self.ascend_gguf_extras |= {"both_ways": True, "window": window}
    return original(self, q, k, v, layer, *args, **kwargs)


forward_extend = forward_decode = _remember_layer


def _run_sdpa_forward_extend(
    original: Callable, self: TorchNativeAttnBackend, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Overrides the engine's attention of new tokens, some of a request's or all."""
    *common, prefix_lens, new_lens, encoder_lens = args
    if self.ascend_gguf_extras:
        return _attend_with_extras(kwargs | self.ascend_gguf_extras, *common, new_lens)
    *tensors, requests, _seq_lens = common
    if encoder_lens is None and kwargs["causal"] and _is_ours(*tensors):
        tokens = _new_tokens(self, requests, prefix_lens, new_lens)
        if len(tensors[0]) == len(tokens):
            return _attend(*tensors, tokens, **kwargs)
    return original(self, *args, **kwargs)


def _run_sdpa_forward_decode(
    original: Callable, self: TorchNativeAttnBackend, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Overrides the engine's attention of one new token of each request."""
    *common, encoder_lens = args
    if self.ascend_gguf_extras:
        options = kwargs | self.ascend_gguf_extras
        return host_call(_attend_with_extras, options, *common, torch.ones_like(common[-1]))
    *tensors, requests, seq_lens = common
    if encoder_lens is None and len(tensors[0]) == len(seq_lens) and _is_ours(*tensors):
        tokens = Tokens(requests.long(), seq_lens.long(), one_each=True)
        return _attend(*tensors, tokens, **kwargs)
    return host_call(partial(original, self, **kwargs), *args)


def _new_tokens(
    self: TorchNativeAttnBackend,
    requests: torch.Tensor,
    prefix_lens: torch.Tensor,
    new_lens: torch.Tensor,
) -> Tokens:
    """Of a batch, once for all layers: each is given the same tensors."""
    batch, tokens = getattr(self, "ascend_gguf_tokens", ((None,) * 3, None))
    if all(a is b for a, b in zip(batch, (requests, prefix_lens, new_lens), strict=True)):
        return tokens
    counts = new_lens.long()
    # A token attends to those before it and to itself.
    firsts = (prefix_lens.long() - counts.cumsum(0) + counts).repeat_interleave(counts)
    lengths = firsts + torch.arange(1, firsts.shape[0] + 1)
    tokens = Tokens(requests.long().repeat_interleave(counts), lengths)
    self.ascend_gguf_tokens = (requests, prefix_lens, new_lens), tokens
    return tokens


def _is_ours(
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    _req_to_token: torch.Tensor,
) -> bool:
    tensors = query, k_cache, v_cache
    return uses_cpu_kernels(*tensors) and paged_attention.takes(*tensors, output)


def _attend(
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    tokens: Tokens,
    *,
    scaling: float,
    sliding_window_size: int | None = None,
    **_: Any,
) -> torch.Tensor:
    """The engine's arguments."""
    cache = k_cache, v_cache, req_to_token
    return paged_attention.attend(query, *cache, tokens, scaling, sliding_window_size, output)


def _attend_with_extras(
    options: dict[str, Any],
    query: torch.Tensor,
    output: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    req_to_token: torch.Tensor,
    req_pool_indices: torch.Tensor,
    seq_lens: torch.Tensor,
    new_lens: torch.Tensor,
) -> torch.Tensor:
    """The engine's arguments; ``new_lens`` says how many rows of ``query`` each request has."""
    return torch_attention.attend_requests(
        query,
        output,
        k_cache,
        v_cache,
        req_to_token,
        req_pool_indices.tolist(),
        seq_lens.tolist(),
        new_lens.tolist(),
        options["scaling"],
        window=options.get("window", options.get("sliding_window_size")),
        both_ways=options.get("both_ways", False),
        cap=options["cap"],
        sinks=options["sinks"],
        temperature=options["temperature"],
    )
