"""Loading of GPT-2, and its heads on several ranks."""

from __future__ import annotations

from typing import Any

from ascend_gguf.srt.models.commandr import copy_inputs
from ascend_gguf.srt.models.direct_loading import load_directly


def repair_loading(model: Any, config: Any) -> None:
    """``GPT2LMHeadModel``: matrices come as in other models.

    Those of the original checkpoint are transposed, and the engine transposes them back.
    """
    load_directly(model, "")


def repair_attention(attention: Any, config: Any) -> None:
    """``GPT2Attention``: the KV heads of this rank; the engine has those of all ranks."""
    attention.attn.tp_k_head_num = attention.attn.tp_v_head_num = attention.num_heads
    copy_inputs(attention)
