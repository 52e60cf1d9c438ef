"""Experts of DBRX, and what its attention reads."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.distributed import tensor_model_parallel_all_reduce
from sglang.srt.layers.moe.ep_moe.layer import get_moe_impl_class
from sglang.srt.layers.moe.topk import TopK
from sglang.srt.models.dbrx import DbrxRouter
from torch import nn

from ascend_gguf.srt.models.single_experts import bind_runner


class StackedExperts(nn.Module):
    """In place of ``DbrxExperts``, which makes its experts as dense matrices on CUDA."""

    def __init__(
        self, config: Any, layer_id: int, quant_config: Any = None, prefix: str = ""
    ) -> None:
        super().__init__()
        sizes = config.ffn_config
        self.router = DbrxRouter(config)
        self.experts = get_moe_impl_class(quant_config)(
            num_experts=sizes.moe_num_experts,
            top_k=sizes.moe_top_k,
            layer_id=layer_id,
            hidden_size=config.d_model,
            intermediate_size=sizes.ffn_hidden_size,
            quant_config=quant_config,
            prefix=f"transformer.blocks.{layer_id}.ffn.experts",
        )
        self.topk = TopK(top_k=sizes.moe_top_k, layer_id=layer_id, renormalize=True)
        bind_runner(self.topk, self.experts)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """``[tokens, hidden]`` to the same."""
        topk = self.topk(hidden_states, self.router(hidden_states))
        return tensor_model_parallel_all_reduce(self.experts(hidden_states, topk))


def name_base(config: Any) -> None:
    """The engine's class looks for the base of RoPE here; a repair takes it, and any scaling."""
    config.attn_config.rope_theta = config.rope_parameters["rope_theta"]
