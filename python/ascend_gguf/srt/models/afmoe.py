"""Experts of Trinity (AFMoE)."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.linear import ReplicatedLinear
from sglang.srt.models.afmoe import AfmoeMLP
from torch import nn

from ascend_gguf.srt.models.single_experts import stacked_experts


class StackedExperts(nn.Module):
    """In place of ``AfmoeMoE``, which copies its experts into one dense matrix as it is built."""

    def __init__(
        self, config: Any, layer_id: int, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.gate = ReplicatedLinear(config.hidden_size, config.num_experts, bias=False)
        self.expert_bias = nn.Parameter(torch.empty(config.num_experts, dtype=torch.float32))
        sizes = {
            "num_experts": config.num_experts,
            "top_k": config.num_experts_per_tok,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.moe_intermediate_size,
        }
        self.topk, self.experts = stacked_experts(
            layer_id,
            sizes,
            quant_config,
            f"{prefix}.experts",
            renormalize=config.route_norm,
            use_grouped_topk=True,
            num_expert_group=1,
            topk_group=1,
            scoring_func="sigmoid",
            correction_bias=self.expert_bias,
            routed_scaling_factor=config.route_scale,
            apply_routed_scaling_factor_on_output=True,
        )
        self.shared_experts = None
        if config.num_shared_experts:
            self.shared_experts = AfmoeMLP(
                hidden_size=config.hidden_size,
                intermediate_size=config.num_shared_experts * config.moe_intermediate_size,
                hidden_act=config.hidden_act,
                quant_config=quant_config,
                reduce_results=False,
                prefix=f"{prefix}.shared_experts",
            )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` to the same."""
        # First: experts may write into their input.
        shared = None if self.shared_experts is None else self.shared_experts(hidden_states)
        logits, _ = self.gate(hidden_states)
        found = self.experts(hidden_states, self.topk(hidden_states, logits))
        return tensor_model_parallel_all_reduce(found if shared is None else found + shared)
