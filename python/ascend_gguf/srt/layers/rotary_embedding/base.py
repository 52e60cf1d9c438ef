"""Rotary position embedding on the CPU in one pass over memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

from ascend_gguf.cpu.row_ops import rotate
from ascend_gguf.srt.device import uses_cpu_kernels


def forward_native(
    original: Callable,
    self: RotaryEmbedding,
    positions: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    offsets: torch.Tensor | None = None,
    fused_set_kv_buffer_arg: object | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Overrides ``RotaryEmbedding.forward_native``; subclasses with one of their own keep it."""
    if (
        offsets is not None
        or fused_set_kv_buffer_arg is not None
        or self.rotary_dim % 32
        or self.cos_sin_cache.shape[-1] != self.rotary_dim
        or hasattr(self, "sin_cos_cache")
        or positions.dim() != 1
        or positions.dtype != torch.int64
        or not uses_cpu_kernels(query, key, self.cos_sin_cache)
    ):
        return original(self, positions, query, key, offsets, fused_set_kv_buffer_arg)
    positions, cos_sin = positions.contiguous(), self.cos_sin_cache.contiguous()
    query_key = (
        rotate(
            x.reshape(x.shape[0], -1, self.head_size),
            positions,
            cos_sin,
            interleaved=not self.is_neox_style,
        ).view(x.shape)
        for x in (query, key)
    )
    return tuple(query_key)
