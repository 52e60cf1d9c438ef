"""Kimi Linear: its norms and experts, and its linear attention's norm on the CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from sglang.srt.utils import is_cpu

from ascend_gguf.cpu.gated_rows import gated_rms_norm
from ascend_gguf.srt.models.routing import by_sigmoid, scale


def repair_attention(attention: Any, config: Any) -> None:
    """``KimiDeltaAttention``: the model's epsilon, and a norm without Triton."""
    norm = attention.o_norm
    norm.eps = config.rms_norm_eps
    norm.forward = partial(_norm if is_cpu() else _norm_by_torch, norm)


def _norm(norm: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """Overrides ``FusedRMSNormGated.forward``."""
    rows, gates = (part.reshape(-1, norm.hidden_size) for part in (x, gate))
    normed = gated_rms_norm(rows, norm.weight, gates, norm.eps, activation="sigmoid")
    return normed.view(x.shape)


def _norm_by_torch(norm: Any, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """The same; ``x`` may be float32 where the gate is not."""
    normed = F.rms_norm(x.float(), (norm.hidden_size,), norm.weight.float(), norm.eps)
    return (normed * gate.float().sigmoid()).to(gate.dtype)


def repair_experts(block: Any, config: Any) -> None:
    """``KimiMoE``: experts are scaled, and chosen by sigmoid on Ascend too; the bias is float32."""
    scale(block, config)
    by_sigmoid(block, config)
    bias = block.gate.e_score_correction_bias
    bias.data = bias.data.float()
