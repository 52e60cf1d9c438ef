"""Loading of GPT-2, its output matrix, and its heads on several ranks."""

from __future__ import annotations

from typing import Any

from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead

from ascend_gguf.srt.models.commandr import copy_inputs
from ascend_gguf.srt.models.direct_loading import load_directly


def repair_loading(model: Any, config: Any) -> None:
    """``GPT2LMHeadModel``: matrices come as in other models, and one of its own for the output.

    Those of the original checkpoint are transposed, and the engine transposes them back.
    """
    load_directly(model, "")
    if not config.tie_word_embeddings:
        sizes = config.vocab_size, config.hidden_size
        model.lm_head = ParallelLMHead(*sizes, quant_config=model.quant_config, prefix="lm_head")


def repair_attention(attention: Any, config: Any) -> None:
    """``GPT2Attention``: the KV heads of this rank; the engine has those of all ranks."""
    attention.attn.tp_k_head_num = attention.attn.tp_v_head_num = attention.num_heads
    copy_inputs(attention)
