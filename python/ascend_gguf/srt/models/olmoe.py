"""Norms of queries and keys of OLMoE on several ranks."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.distributed import split_tensor_along_last_dim, tensor_model_parallel_all_gather
from sglang.srt.layers.layernorm import RMSNorm
from sglang.srt.runtime_context import get_parallel

from ascend_gguf.srt.models.rotary import set_rotary_embedding


class NormOfAllHeads(RMSNorm):
    """A norm over the heads of all ranks: ``[tokens, heads of this rank * head]``."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parallel = get_parallel()
        if parallel.tp_size == 1:
            return super().forward(x)
        whole = super().forward(tensor_model_parallel_all_gather(x.contiguous()))
        return split_tensor_along_last_dim(whole, parallel.tp_size)[parallel.tp_rank].contiguous()


def repair_attention(attention: Any, config: Any) -> None:
    """``OlmoeAttention``: norms over all heads; keys may have fewer, and ranks share them."""
    heads = {"q_norm": attention.total_num_heads, "k_norm": attention.total_num_kv_heads}
    for name, count in heads.items():
        norm = NormOfAllHeads(count * attention.head_dim, eps=config.rms_norm_eps)
        setattr(attention, name, norm)
    set_rotary_embedding(attention, config)
