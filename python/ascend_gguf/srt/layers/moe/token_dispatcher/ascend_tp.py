"""Expert parallelism on NPUs without an all-to-all: each rank routes to its own experts.

Every rank has all tokens, and computes what its experts give; the layer's one all-reduce adds the
parts up.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.hardware_backend.npu.moe.finalize_routing import NPUFinalizeRouting
from sglang.srt.hardware_backend.npu.moe.init_routing import NPUMoEInitRouting_v2
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.moe.token_dispatcher.ascend_tp import AscendTPDispatcher

from ascend_gguf.srt.overrides import override


def deal_experts(model: torch.nn.Module) -> None:
    """Let every layer of experts route to those of this rank, where it has not all of them.

    With an exchange of tokens (DeepEP) nothing changes.
    """
    for layer in model.modules():
        if isinstance(layer, FusedMoE) and isinstance(layer.dispatcher, AscendTPDispatcher):
            if layer.moe_ep_size > 1:
                _deal(layer)


def _deal(layer: FusedMoE) -> None:
    count = layer.num_local_experts
    if count * layer.moe_ep_size != layer.num_experts:
        raise NotImplementedError(f"{layer.num_experts} experts, of which a rank has {count}")
    first = layer.moe_ep_rank * count
    layer.dispatcher.own_experts = range(first, first + count)
    override(layer.dispatcher)
    layer.dispatcher.set_ascend_dispatcher_output_dtype()


def set_ascend_dispatcher_output_dtype(original: Callable, self: AscendTPDispatcher) -> None:
    """Overrides ``AscendTPDispatcher.set_ascend_dispatcher_output_dtype``: the rank's experts."""
    original(self)
    self.init = OwnInitRouting(self.own_experts)
    self.finalize = OwnFinalizeRouting(drop_pad_mode=2)


class OwnInitRouting(NPUMoEInitRouting_v2):
    """``npu_moe_init_routing_v2`` for a range of the experts."""

    def __init__(self, experts: range) -> None:
        super().__init__()
        self.experts = experts

    def _init_routing(
        self, hidden_states: torch.Tensor, topk_ids: torch.Tensor, num_experts: int, top_k: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None]:
        """As the engine's.

        Returns:
            rows ``[tokens * top_k, hidden]``, of which those of this rank come first, and the
            others are undefined; for each pair of token and expert its row, or -1; int64, rows of
            each of the experts; None.
        """
        rows, places, counts, _ = torch.ops.npu.npu_moe_init_routing_v2(
            hidden_states,
            topk_ids,
            active_num=len(hidden_states) * top_k,
            expert_num=num_experts,
            expert_tokens_num_type=1,
            expert_tokens_num_flag=True,
            active_expert_range=[self.experts.start, self.experts.stop],
            quant_mode=-1,
        )
        return rows, places, counts.to(torch.int64), None


class OwnFinalizeRouting(NPUFinalizeRouting):
    """``npu_moe_finalize_routing`` where some pairs of token and expert are another rank's.

    The operator takes no -1: such pairs get the first row, and no weight.
    """

    def _finalize_routing(
        self,
        hidden_states: torch.Tensor,
        topk_weights: torch.Tensor,
        expanded_row_idx: torch.Tensor,
        topk_ids: torch.Tensor,
    ) -> torch.Tensor:
        # Undefined where no token has an expert here; and 0 * NaN is NaN.
        hidden_states[:1].nan_to_num_()
        is_foreign = (expanded_row_idx < 0).view_as(topk_weights)
        return super()._finalize_routing(
            hidden_states,
            topk_weights.masked_fill(is_foreign, 0.0),
            expanded_row_idx.clamp(min=0),
            topk_ids,
        )
