"""DeciLM and Llama-Nemotron: Llama, whose layers a search has made smaller, each for itself.

A layer may have fewer heads for keys and values, a single matrix instead of attention, or no
attention; its feed-forward network has a width of its own, or is left out.
"""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import Fields, as_field
from ascend_gguf.architectures.layers import each_layer
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import (
    FIELDS,
    FRAME,
    HEAD_SIZE,
    OWN_HEADS,
    OWN_WIDTHS,
    attention,
    mlp,
)
from ascend_gguf.architectures.transforms import halves_from_pairs
from ascend_gguf.reader import GGUFFile

#: Zero where a layer has none.
_OWN: Fields = {
    key: replace(as_field(field), least=0) for key, field in (OWN_HEADS | OWN_WIDTHS).items()
}


def _one_number_of_heads(file: GGUFFile, attributes: Attributes) -> Attributes:
    heads = set(each_layer(attributes, "num_attention_heads")) - {0}
    if len(heads) > 1:
        raise file.error(
            "SGLang's model has as many query heads in each layer, or none",
            "attention.head_count",
            found=sorted(heads),
            expected="one number beside zero",
            hint=None,
        )
    return {}


ARCHITECTURES = (
    Architecture(
        name="deci",
        model_type="deci",
        causal_lm="DeciLMForCausalLM",
        fields=FIELDS | HEAD_SIZE | _OWN,
        constants={"hidden_act": "silu"},
        tensors=(
            *FRAME,
            per_layer("attn_norm.weight", "hidden", "input_layernorm.weight", kind="mixing"),
            *attention(halves_from_pairs("heads"), halves_from_pairs("kv_heads"), kind="attending"),
            per_layer(
                "attn_output.weight", "hidden hidden", "self_attn.linear_attn.weight", kind="matrix"
            ),
            per_layer(
                "ffn_norm.weight", "hidden", "post_attention_layernorm.weight", kind="feeding"
            ),
            *mlp("feeding"),
        ),
        derived=(_one_number_of_heads,),
    ),
)
