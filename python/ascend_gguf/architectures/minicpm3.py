"""MiniCPM 3: latent attention, and the scales of MiniCPM."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.layers import no_grouped_heads
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import FIELDS, FRAME, NORMS, mlp
from ascend_gguf.reader import GGUFFile


@reads("attention.key_length")
def _key_size(file: GGUFFile, attributes: Attributes) -> Attributes:
    key, turned = (
        number(file, "attention.key_length", required=True),
        attributes["qk_rope_head_dim"],
    )
    if key <= turned:
        raise file.error(
            "the rotary embedding covers more than a part of each key",
            "rope.dimension_count",
            found=turned,
            expected=f"less than attention.key_length, {key}",
        )
    return {"qk_nope_head_dim": key - turned}


def _value_size(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"v_head_dim": attributes["hidden_size"] // attributes["num_attention_heads"]}


def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Of what is turned of each head, which is turned whole."""
    found = {"factor": 1.0} | rope.longrope_or_other(file, attributes)  # which transformers wants
    if found["rope_type"] == "default":
        found.pop("factor")
    return {name: value for name, value in found.items() if name != "partial_rotary_factor"}


ARCHITECTURES = (
    Architecture(
        name="minicpm3",
        model_type="minicpm3",
        fields=FIELDS
        | {
            "attention.q_lora_rank": "q_lora_rank",
            "attention.kv_lora_rank": "kv_lora_rank",
            "rope.dimension_count": "qk_rope_head_dim",
        },
        tensors=(
            *FRAME,
            *NORMS,
            per_layer("attn_q_a.weight", "q_lora hidden", "self_attn.q_a_proj.weight"),
            per_layer("attn_q_a_norm.weight", "q_lora", "self_attn.q_a_layernorm.weight"),
            per_layer("attn_q_b.weight", "heads*qk q_lora", "self_attn.q_b_proj.weight"),
            per_layer(
                "attn_kv_a_mqa.weight", "kv_lora+rope hidden", "self_attn.kv_a_proj_with_mqa.weight"
            ),
            per_layer("attn_kv_a_norm.weight", "kv_lora", "self_attn.kv_a_layernorm.weight"),
            # The engine's loader splits it.
            per_layer(
                "attn_kv_b.weight",
                "heads*nope+heads*v_head kv_lora",
                "self_attn.kv_b_proj.weight",
                dense=True,
            ),
            per_layer("attn_output.weight", "hidden heads*v_head", "self_attn.o_proj.weight"),
            *mlp(),
        ),
        # llama.cpp has no others.
        constants={"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256},
        rope=_rope,
        derived=(no_grouped_heads, _key_size, _value_size),
    ),
)
