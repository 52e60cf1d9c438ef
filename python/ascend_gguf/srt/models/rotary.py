"""RoPE of an attention layer: from the configuration alone, and on an NPU for any size."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.rotary_embedding import RotaryEmbedding, get_rope
from sglang.srt.utils import is_npu
from torch import nn

from ascend_gguf.npu.products import ROPE, this_product


def set_rotary_embedding(
    attention: Any, config: Any, is_neox_style: bool | None = None, base: float | None = None
) -> None:
    """Replace the RoPE of an attention layer by one with the configuration's own parameters.

    Some of the engine's models take the base alone, rounded down, and no scaling.

    Args:
        is_neox_style: rotate row ``i`` with row ``i + half``; else interleaved RoPE.  As before
            if None.
        base: of the frequencies; the configuration's if None.
    """
    old, parameters = attention.rotary_emb, config.rope_parameters
    attention.rotary_emb = get_rope(
        old.head_size,
        rotary_dim=old.rotary_dim,
        max_position=config.max_position_embeddings,
        base=parameters["rope_theta"] if base is None else base,
        rope_scaling=parameters,
        is_neox_style=_turns_halves(old) if is_neox_style is None else is_neox_style,
        dtype=getattr(old, "dtype", None),
    )


def set_rotary_of_type(attention: Any, config: Any) -> None:
    """Replace the RoPE of an attention layer by that of its type, with a window or without."""
    has_window = attention.attn.sliding_window_size > -1
    parameters = config.rope_parameters["sliding_attention" if has_window else "full_attention"]
    attention.rotary_emb = get_rope(
        attention.head_dim,
        rotary_dim=attention.head_dim,
        max_position=config.max_position_embeddings,
        base=parameters["rope_theta"],
        rope_scaling=parameters,
        partial_rotary_factor=parameters.get("partial_rotary_factor", 1.0),
        dtype=getattr(attention.rotary_emb, "dtype", None),
    )


def _turns_halves(rotary: Any) -> bool:
    return getattr(rotary, "is_neox_style", True)  # LongRoPE's does not say


def avoid_rotary_kernel(model: nn.Module) -> None:
    """On an NPU, compute RoPE by torch operators where its own refuses the sizes, or is missing.

    ``npu_mrope`` takes multiples of 32, for the head size and for the rotary part of it.
    """
    if not is_npu():
        return
    is_missing = ROPE in this_product().lacks
    for module in model.modules():
        takes_kernel = getattr(type(module), "forward_npu", None) is RotaryEmbedding.forward_npu
        if takes_kernel and (is_missing or module.head_size % 32 or module.rotary_dim % 32):
            module._forward_method = module.forward_native
