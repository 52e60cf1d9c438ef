"""Llama and the models whose files have its architecture: Mistral, Mixtral and many others."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures.base import Architecture, Rename
from ascend_gguf.architectures.metadata import number
from ascend_gguf.architectures.parts import (
    CAUSAL,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    NORMS,
    SOFTMAX_ROUTER,
    attention,
    experts,
    mlp,
)
from ascend_gguf.architectures.transforms import halves_from_pairs
from ascend_gguf.reader import GGUFFile

#: Attention with interleaved RoPE.
ATTENTION = attention(halves_from_pairs("heads"), halves_from_pairs("kv_heads"))

BODY: tuple[Rename, ...] = FRAME + NORMS + ATTENTION


def has_experts(file: GGUFFile) -> bool:
    """True for a mixture of experts; a count of zero is a dense model."""
    return bool(number(file, "expert_count", least=0))


ARCHITECTURES: tuple[Architecture, ...] = (
    Architecture(
        name="llama",
        mark=has_experts,
        model_type="mixtral",
        fields=FIELDS
        | HEAD_SIZE
        | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        fixed=SOFTMAX_ROUTER,
        tensors=BODY + experts("block_sparse_moe", ("w1", "w3", "w2")),
    ),
    Architecture(
        name="llama",
        model_type="llama",
        fields=FIELDS | HEAD_SIZE,
        reads=CAUSAL,
        tensors=BODY + mlp(),
    ),
)

#: Which attends in both directions, and gives embeddings.
_EMBEDS = replace(
    ARCHITECTURES[-1],
    name="llama-embed",
    reads=frozenset(),
    fixed={"attention.causal": (False,)},
    embeds=True,
)

ARCHITECTURES += (_EMBEDS,)
