"""DBRX, whose configuration has parts for attention and for experts."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import scale
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    LAYER_NORM_EPSILON,
    PLAIN_FIELDS,
    SOFTMAX_ROUTER,
    experts,
)
from ascend_gguf.reader import GGUFFile


def _parts(file: GGUFFile, attributes: Attributes) -> Attributes:
    """The names of the published configuration, for the sizes known by those of all models."""
    return {
        "d_model": attributes["hidden_size"],
        "n_heads": attributes["num_attention_heads"],
        "n_layers": attributes["num_hidden_layers"],
        "max_seq_len": attributes["max_position_embeddings"],
        "attn_config": {
            "kv_n_heads": attributes["num_key_value_heads"],
            "clip_qkv": attributes.get("clip_qkv"),
        },
        "ffn_config": {
            "ffn_hidden_size": attributes["intermediate_size"],
            "moe_num_experts": attributes["num_local_experts"],
            "moe_top_k": attributes["num_experts_per_tok"],
        },
    }


_LAYER = (
    per_layer("attn_norm.weight", "hidden", "norm_attn_norm.norm_1.weight"),
    per_layer("attn_qkv.weight", "q+2*kv hidden", "norm_attn_norm.attn.Wqkv.weight"),
    per_layer("attn_output.weight", "hidden q", "norm_attn_norm.attn.out_proj.weight"),
    per_layer("attn_output_norm.weight", "hidden", "norm_attn_norm.norm_2.weight"),
    *experts("ffn", router="router.layer.weight"),
)

ARCHITECTURES = (
    Architecture(
        name="dbrx",
        model_type="dbrx",
        fields=PLAIN_FIELDS
        | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
        | {"attention.clamp_kqv": scale("clip_qkv")},
        fixed={LAYER_NORM_EPSILON: (1e-5,)} | SOFTMAX_ROUTER,
        tensors=(
            Rename("token_embd.weight", "vocab hidden", "transformer.wte.weight"),
            Rename("output_norm.weight", "hidden", "transformer.norm_f.weight"),
            Rename("output.weight", "vocab hidden", "lm_head.weight"),
            *(
                rule.renamed(lambda name: name.replace("model.layers", "transformer.blocks"))
                for rule in _LAYER
            ),
        ),
        constants={"tie_word_embeddings": False},
        derived=(_parts,),
    ),
)
