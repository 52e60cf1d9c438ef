"""Experts of DBRX, and what its attention reads."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.models.dbrx import DbrxRouter
from torch import nn

from ascend_gguf.srt.models.single_experts import stacked_experts


class StackedExperts(nn.Module):
    """In place of ``DbrxExperts``, which makes its experts as dense matrices on CUDA."""

    def __init__(
        self, config: Any, layer_id: int, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__()
        self.router = DbrxRouter(config)
        sizes = {
            "num_experts": config.ffn_config.moe_num_experts,
            "top_k": config.ffn_config.moe_top_k,
            "hidden_size": config.d_model,
            "intermediate_size": config.ffn_config.ffn_hidden_size,
        }
        name = f"transformer.blocks.{layer_id}.ffn.experts"
        self.topk, self.experts = stacked_experts(
            layer_id, sizes, quant_config, name, renormalize=True
        )

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` to the same."""
        topk = self.topk(hidden_states, self.router(hidden_states))
        return tensor_model_parallel_all_reduce(self.experts(hidden_states, topk))


def name_base(config: Any) -> None:
    """The engine's class looks for the base of RoPE here; a repair takes it, and any scaling."""
    config.attn_config.rope_theta = config.rope_parameters["rope_theta"]
