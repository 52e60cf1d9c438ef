"""Kimi Linear: its norms and experts, and its linear attention's norm on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.utils import is_cpu

from ascend_gguf.cpu.gated_rows import gated_rms_norm
from ascend_gguf.srt.models.bailing_moe import scale_topk


def repair_attention(attention: Any, config: Any) -> None:
    """``KimiDeltaAttention``: the model's epsilon, and on the CPU a norm without Triton."""
    norm = attention.o_norm
    norm.eps = config.rms_norm_eps
    if is_cpu():

        def forward(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
            rows = (part.reshape(-1, norm.hidden_size) for part in (x, gate))
            x_rows, gates = rows
            normed = gated_rms_norm(x_rows, norm.weight, gates, norm.eps, activation="sigmoid")
            return normed.view(x.shape)

        norm.forward = forward


def repair_experts(block: Any, config: Any) -> None:
    """``KimiMoE``: experts are scaled, and chosen by sigmoid on Ascend too; the bias is float32."""
    scale_topk(block, config)
    block.topk.topk_config.scoring_func = "sigmoid"
    bias = block.gate.e_score_correction_bias
    bias.data = bias.data.float()
