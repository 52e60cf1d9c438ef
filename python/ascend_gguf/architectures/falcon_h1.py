"""Falcon-H1: attention and Mamba-2 side by side in every layer."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.mamba2 import STATE, biases, inner_size, mixer
from ascend_gguf.architectures.metadata import Attributes, reads
from ascend_gguf.architectures.parts import ATTENTION, EMBEDDING, FIELDS, HEAD_SIZE, OUTPUT, mlp
from ascend_gguf.reader import GGUFFile


@reads("ssm.inner_size")
def _state(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Sizes of the state, which parts have a bias, and whether what leaves it is normalised."""
    heads = attributes["mamba_n_heads"]
    inner = inner_size(file, heads, attributes["mamba_n_groups"])
    return {
        "mamba_d_ssm": inner,
        "mamba_d_head": inner // heads,
        **biases(file, "mamba_conv_bias", "mamba_proj_bias"),
        "mamba_rms_norm": any(name.endswith(".ssm_norm.weight") for name in file.tensors),
    }


ARCHITECTURES = (
    # Its multipliers are in the weights of a file.
    Architecture(
        name="falcon-h1",
        model_type="falcon_h1",
        fields=FIELDS | HEAD_SIZE | STATE,
        tensors=(
            EMBEDDING,
            OUTPUT,
            Rename("output_norm.weight", "hidden", "model.final_layernorm.weight"),
            per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
            per_layer("ffn_norm", "hidden", "pre_ff_layernorm.weight"),
            *ATTENTION,
            *mixer("mamba", ""),
            *mlp(module="feed_forward"),
        ),
        constants={"mamba_norm_before_gate": False},
        derived=(_state,),
    ),
)
