"""Embedding and output matrix of Gemma 3, and its RoPE on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.layers.rotary_embedding import apply_rotary_pos_emb
from sglang.srt.layers.vocab_parallel_embedding import VocabParallelEmbedding
from torch import nn

from ascend_gguf.cpu.row_ops import rotate_by
from ascend_gguf.srt.device import uses_cpu_kernels
from ascend_gguf.srt.models.direct_loading import load_directly
from ascend_gguf.srt.models.output_matrix import load_output_matrix
from ascend_gguf.srt.overrides import let_see


class ScaledEmbedding(VocabParallelEmbedding):
    """Gemma 3's embedding, whose rows are multiplied by a factor, in parts on several ranks."""

    embed_scale: float

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        return super().forward(input_) * self.embed_scale


def shared_by_ranks(whole: Any) -> ScaledEmbedding:
    """What takes the place of one of the engine's, which every rank has whole."""
    shared = ScaledEmbedding(whole.num_embeddings, whole.embedding_dim)
    shared.embed_scale = whole.embed_scale
    return shared


def repair_embedding(model: Any, config: Any) -> None:
    """``Gemma3ForCausalLM``: an embedding that ranks share, and the output matrix of the file.

    The engine's is a whole ``torch.nn.Embedding`` on every rank.  Its logits are of the embedding,
    even where the file has an output matrix, and its loader leaves out one that is not quantized.
    """
    whole = model.model.embed_tokens
    model.model.embed_tokens = shared = shared_by_ranks(whole)
    if not hasattr(model, "lm_head"):
        _add_projector(model, config)
        return
    if model.lm_head is whole:
        model.lm_head = shared
        return
    model.logits_processor.register_forward_pre_hook(
        lambda module, inputs: (*inputs[:2], model.lm_head, *inputs[3:])
    )
    load_output_matrix(model, config)


def _add_projector(model: Any, config: Any) -> None:
    """Of ``EmbeddingGemmaModel``: the layers behind the pooling, in float32 as that is.

    The engine reads these from files beside a checkpoint, in the class's own ``load_weights``.
    """
    model.load_weights = super(type(model), model).load_weights
    load_directly(model, r"projector\.")
    if config.dense_size:
        sizes = config.hidden_size, config.dense_size
        layers = (
            nn.Linear(*pair, bias=False, dtype=torch.float32) for pair in (sizes, sizes[::-1])
        )
        model.projector = nn.Sequential(*layers)


def repair_attention(attention: Any, config: Any) -> None:
    """``Gemma3Attention``: on the CPU, RoPE is one compiled call."""
    let_see(attention, "forward_native", apply_rotary_pos_emb=rotate_both)


def rotate_both(
    q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, unsqueeze_dim: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """``apply_rotary_pos_emb``; both halves of ``cos`` and ``sin [tokens, size]`` are alike."""
    half = cos.shape[-1] // 2
    if (
        (q.dim(), k.dim(), cos.dim(), unsqueeze_dim) != (3, 3, 2, 1)
        or half % 16
        or cos.shape[-1] != q.shape[-1]
        or not uses_cpu_kernels(q, k, cos, sin)
    ):
        return apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim)
    cos, sin = cos[:, :half], sin[:, :half]
    return tuple(rotate_by(x.contiguous(), cos, sin) for x in (q, k))
