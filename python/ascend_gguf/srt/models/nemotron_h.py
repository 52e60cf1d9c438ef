"""Nemotron-H: what its configuration means, and its experts where there is no CUDA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from ascend_gguf.srt.models.mamba2 import share_group
from ascend_gguf.srt.models.routing import scale
from ascend_gguf.srt.overrides import override_methods


def repair_config(config: Any) -> None:
    """The engine's model reads the number of groups under a name that the configuration has not."""
    config.mamba_n_groups = config.n_groups
    share_group(config)
    config.n_groups = config.mamba_n_groups


def repair_experts(block: Any, config: Any) -> None:
    """``NemotronHMoE``: the router is multiplied by an operator for CUDA; experts are scaled."""
    scale(block, config)
    override_methods(block, _forward_core_normal=_forward_core_normal)


def _forward_core_normal(
    original: Callable, self: Any, hidden_states: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = F.linear(hidden_states.float(), self.gate.weight.float())
    shared = self.shared_experts(hidden_states) if self.shared_experts is not None else None
    chosen = self.topk(hidden_states, logits)
    if self.use_latent_moe:
        hidden_states, _ = self.fc1_latent_proj(hidden_states)
    return self.experts(hidden_states, chosen), shared
