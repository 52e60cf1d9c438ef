"""Kimi Delta Attention on the CPU: the engine's backend, which has Triton kernels alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.layers.attention.linear.kda_backend import KDAAttnBackend
from sglang.srt.layers.attention.linear.kernels.kda_triton import TritonKDAKernel

from ascend_gguf.cpu.causal_conv import causal_conv1d_fn
from ascend_gguf.cpu.delta_net import (
    chunk_gated_delta_rule,
    fused_sigmoid_gating_delta_rule_update,
)
from ascend_gguf.srt.overrides import override_methods, seeing
from ascend_gguf.torch_delta_rule import gates


def use_cpu_kernels(backend: KDAAttnBackend) -> None:
    """Let the backend compute by kernels for the CPU."""
    kernel = _CPUKernel()
    backend.kernel_dispatcher.decode_kernel = backend.kernel_dispatcher.extend_kernel = kernel
    # Before SGLang 0.5.22 the latter convolves by itself.
    for name in ("_convolve_prefill", "forward_extend"):
        method = getattr(KDAAttnBackend, name, None)
        if method is not None and "causal_conv1d_fn" in method.__code__.co_names:
            override_methods(backend, **{name: _convolving})


def _convolving(original: Callable, self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    return seeing(original, causal_conv1d_fn=causal_conv1d_fn)(self, *args, **kwargs)


class _CPUKernel(TritonKDAKernel):
    """The engine's arguments; ``a``, ``b`` and ``g`` are as projected, ``[1, tokens, ...]``."""

    supports_track_state_snapshot = False

    def decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        a: torch.Tensor,
        b: torch.Tensor,
        *,
        A_log: torch.Tensor,
        dt_bias: torch.Tensor,
        ssm_states: torch.Tensor,
        cache_indices: torch.Tensor,
        query_start_loc: torch.Tensor,
        lower_bound: float | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        assert lower_bound is None
        vectors = A_log.flatten(), dt_bias.flatten()
        projected = a.flatten(1), b.squeeze(0)
        states = ssm_states, cache_indices, query_start_loc
        return fused_sigmoid_gating_delta_rule_update(*vectors, q, k, v, *projected, *states)

    def extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        g: torch.Tensor,
        beta: torch.Tensor,
        *,
        ssm_states: torch.Tensor,
        cache_indices: torch.Tensor,
        query_start_loc: torch.Tensor,
        A_log: torch.Tensor,
        dt_bias: torch.Tensor,
        lower_bound: float | None = None,
        beta_is_raw: bool = False,
        return_intermediate_states: bool = False,
        **kwargs: Any,
    ) -> torch.Tensor:
        assert lower_bound is None and not return_intermediate_states
        g, rate = gates(A_log.flatten(), g[0], beta[0], dt_bias.view(g.shape[2:]))
        found, *_ = chunk_gated_delta_rule(
            *(q, k, v, g, rate if beta_is_raw else beta),
            initial_state=ssm_states,
            initial_state_indices=cache_indices,
            cu_seqlens=query_start_loc,
        )
        return found
