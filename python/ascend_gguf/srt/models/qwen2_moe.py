"""The gate of Qwen2-MoE's shared expert on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.utils import is_cpu

from ascend_gguf.srt.overrides import let_see


def repair_shared_expert(block: Any, config: Any) -> None:
    """``Qwen2MoeSparseMoeBlock``: the engine's gate is a Triton kernel, on CPUs without AMX too."""
    if is_cpu():
        let_see(block, "forward", fused_gate_sigmoid_mul_add=add_gated)


def add_gated(
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """``final_hidden_states += sigmoid(hidden_states @ gate_weight) * shared_output``, in place.

    Args:
        hidden_states, shared_output, final_hidden_states: ``[tokens, hidden]``.
        gate_weight: ``[hidden]``.
    """
    gate = torch.sigmoid(hidden_states.float() @ gate_weight.float()).unsqueeze(-1)
    # Added in float32 and rounded once, as the kernel does.
    final_hidden_states.copy_(final_hidden_states.float() + gate * shared_output.float())
