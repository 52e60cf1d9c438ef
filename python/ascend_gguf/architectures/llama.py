"""Llama and the models whose files have its architecture: Mistral, Mixtral and many others."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.layers import has_tensor
from ascend_gguf.architectures.metadata import number
from ascend_gguf.architectures.parts import (
    ATTENTION_OUTPUT,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    NORMS,
    REQUIRED,
    SOFTMAX_ROUTER,
    experts,
    mlp,
)
from ascend_gguf.architectures.transforms import halves_from_pairs
from ascend_gguf.reader import GGUFFile

_Q, _K = halves_from_pairs("heads"), halves_from_pairs("kv_heads")

#: Attention whose rotary embedding turns pairs of neighbouring rows.
ATTENTION = (
    per_layer("attn_q.weight", "q hidden", "self_attn.q_proj.weight", undo=_Q),
    per_layer("attn_k.weight", "kv hidden", "self_attn.k_proj.weight", undo=_K),
    per_layer("attn_v.weight", "kv hidden", "self_attn.v_proj.weight"),
    ATTENTION_OUTPUT,
)

#: Biases of a Llama that has them.
_BIAS = (
    per_layer("attn_q.bias", "q", "self_attn.q_proj.bias", optional=True, undo=_Q),
    per_layer("attn_k.bias", "kv", "self_attn.k_proj.bias", optional=True, undo=_K),
    per_layer("attn_v.bias", "kv", "self_attn.v_proj.bias", optional=True),
    per_layer("attn_output.bias", "hidden", "self_attn.o_proj.bias", optional=True),
)

BODY: tuple[Rename, ...] = FRAME + NORMS + ATTENTION


def has_experts(file: GGUFFile) -> bool:
    """True for a mixture of experts; a count of zero is a dense model."""
    return bool(number(file, "expert_count", least=0))


ARCHITECTURES = (
    Architecture(
        name="llama",
        mark=has_experts,
        model_type="mixtral",
        fields=FIELDS
        | HEAD_SIZE
        | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        required=REQUIRED | {"expert_count", "expert_used_count"},
        fixed=SOFTMAX_ROUTER,
        tensors=BODY + experts("block_sparse_moe", ("w1", "w3", "w2")),
    ),
    Architecture(
        name="llama",
        model_type="llama",
        fields=FIELDS | HEAD_SIZE,
        required=REQUIRED,
        tensors=BODY + _BIAS + mlp(),
        derived=(has_tensor("attention_bias", "blk.0.attn_q.bias"),),
    ),
)
