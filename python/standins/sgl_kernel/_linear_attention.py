"""Operators of linear attention, where SGLang's CPU path looks for them."""

import torch

from ascend_gguf.cpu import delta_net, gated_rows
from ascend_gguf.torch_delta_rule import gates

_OPERATORS = {
    "fused_gdn_gating_cpu": gates,
    "fused_sigmoid_gating_delta_rule_update_cpu": delta_net.fused_sigmoid_gating_delta_rule_update,
    "fused_sigmoid_mul_cpu": gated_rows.multiply_by_sigmoid,
    "fused_qk_gemma_rmsnorm_cpu": delta_net.norm_queries_and_keys,
    "fused_qk_gemma_rmsnorm_with_gate_cpu": delta_net.norm_gated_queries_and_keys,
    "fused_qkvzba_split_reshape_cat_contiguous_cpu": delta_net.split_projections,
}


def provide() -> None:
    """Put the operators into ``torch.ops.sgl_kernel``, as plain functions."""
    for name, function in _OPERATORS.items():
        setattr(torch.ops.sgl_kernel, name, function)
