"""Llama and the models whose files have its architecture: Mistral, Mixtral and many others."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.layers import has_tensor
from ascend_gguf.architectures.parts import (
    ATTENTION_OUTPUT,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    NORMS,
    REQUIRED,
    experts,
    mlp,
)
from ascend_gguf.architectures.transforms import halves_from_pairs

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


ARCHITECTURES = (
    Architecture(
        name="llama",
        mark=lambda file: "llama.expert_count" in file.metadata,
        model_type="mixtral",
        fields=FIELDS
        | HEAD_SIZE
        | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"},
        required=REQUIRED | {"expert_count", "expert_used_count"},
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
