"""The gate of Qwen2-MoE's shared expert on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch


def fused_gate_sigmoid_mul_add(
    original: Callable,
    hidden_states: torch.Tensor,
    gate_weight: torch.Tensor,
    shared_output: torch.Tensor,
    final_hidden_states: torch.Tensor,
) -> None:
    """AROUND the engine's Triton kernel, which it calls on CPUs without AMX too.

    ``final_hidden_states += sigmoid(hidden_states @ gate_weight) * shared_output``, in place.

    Args:
        hidden_states, shared_output, final_hidden_states: ``[tokens, hidden]``.
        gate_weight: ``[hidden]``.
    """
    if hidden_states.device.type != "cpu":
        return original(hidden_states, gate_weight, shared_output, final_hidden_states)
    gate = torch.sigmoid(hidden_states.float() @ gate_weight.float()).unsqueeze(-1)
    # Added in float32 and rounded once, as the kernel does.
    final_hidden_states.copy_(final_hidden_states.float() + gate * shared_output.float())
