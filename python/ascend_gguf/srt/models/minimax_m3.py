"""MiniMax M3: its activation and routing, and on an NPU its norms of queries and keys."""

from __future__ import annotations

from typing import Any

from ascend_gguf.cpu.experts import swiglu_oai
from ascend_gguf.srt.models.routing import renormalize_as_configured


def set_activation(mlp: Any, config: Any) -> None:
    """``MiniMaxM3MLP``: the activation in torch's operators.

    The engine compiles it on the CPU, for minutes on some hosts, and has a Triton kernel for
    Ascend.
    """
    mlp.act_fn = swiglu_oai(config.swiglu_alpha, config.swiglu_limit)


def repair_routing(block: Any, config: Any) -> None:
    """``MiniMaxM3MoE``: the router is float32, and weights are normalized if the file says so."""
    block.bf16_router_gemm = False
    block.gate.weight.data = block.gate.weight.data.float()
    renormalize_as_configured(block, config)


def repair_attention(attention: Any, config: Any) -> None:
    """``MiniMaxM3Attention``: norms and RoPE by the engine's own layers, on an NPU too.

    The one kernel for it there rounds to bfloat16, whatever the model computes in, and takes sizes
    of heads that are powers of two.
    """
    attention.forward_prepare_npu = attention.forward_prepare
