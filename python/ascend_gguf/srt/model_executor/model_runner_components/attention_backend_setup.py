"""Attention backends of models that keep a state of each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sglang.srt.configs.hybrid_arch import kimi_linear_config, mamba2_config
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.utils import is_cpu, is_npu

if TYPE_CHECKING:
    from sglang.srt.layers.attention.base_attn_backend import AttentionBackend


def _build_backend_from_str(
    original: Callable, *, model_runner: Any, backend_str: str, init_new_workspace: bool
) -> AttentionBackend:
    """AROUND the engine's choice.

    On Ascend it has nothing for the states of Mamba-2 and convolutions, for those of Kimi Delta
    Attention operators that are not documented, and on the CPU Triton kernels.
    """
    model_config = model_runner.model_config
    is_gguf, kimi = model_config.quantization == "gguf", kimi_linear_config(model_config)
    config = mamba2_config(model_config) or kimi
    if config is None or not is_npu() or not is_gguf:
        backend = original(
            model_runner=model_runner,
            backend_str=backend_str,
            init_new_workspace=init_new_workspace,
        )
        if is_cpu() and is_gguf and kimi is not None:
            from ascend_gguf.srt.layers.attention.linear.kda_backend import use_cpu_kernels

            use_cpu_kernels(backend.linear_attn_backend)
        return backend
    # Not before: it imports kernels of sgl-kernel-npu, which other models do without.
    from ascend_gguf.srt.hardware_backend.npu.attention import ascend_hybrid_linear_attn_backend

    if config.model_type == "mamba2":  # no layer attends
        return ascend_hybrid_linear_attn_backend.GGUFMamba2Backend(model_runner)
    model_runner.init_new_workspace = init_new_workspace
    attention = ATTENTION_BACKENDS[backend_str](model_runner)
    return ascend_hybrid_linear_attn_backend.with_states(attention, model_runner, config)
