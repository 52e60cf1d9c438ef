"""Families of one architecture."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, fraction, per_layer
from ascend_gguf.architectures.layers import has_tensor
from ascend_gguf.architectures.llama import BODY
from ascend_gguf.architectures.parts import (
    ATTENTION,
    FIELDS,
    FRAME,
    FUSED_MLP,
    HEAD_SIZE,
    HUNYUAN_QK_NORM,
    NORMS,
    NORMS_AROUND_ATTENTION,
    OUTPUT_BIAS,
    REQUIRED,
    WINDOW,
    attention,
    mlp,
)

PHI3 = Architecture(
    name="phi3",
    model_type="phi3",
    fields=FIELDS | WINDOW,
    required=REQUIRED,
    reads=frozenset({"rope.dimension_count"}),
    tensors=(
        *FRAME,
        *NORMS,
        *ATTENTION,
        *FUSED_MLP,
    ),
    rope=rope.longrope,
    defaults={"sliding_window": None},
    # The engine reads the factor outside the RoPE parameters.
    derived=(rope.partial_factor,),
)

STARCODER2 = Architecture(
    name="starcoder2",
    model_type="starcoder2",
    fields={key: value for key, value in FIELDS.items() if "rms" not in key}
    | {"attention.layer_norm_epsilon": fraction("norm_epsilon")},
    required=frozenset(key for key in REQUIRED if "rms" not in key)
    | {"attention.layer_norm_epsilon"},
    fixed={"hidden_activation": ("gelu_pytorch_tanh",)},
    tensors=(
        *FRAME,
        Rename("output_norm.bias", "hidden", "model.norm.bias"),
        *NORMS,
        per_layer("attn_norm.bias", "hidden", "input_layernorm.bias"),
        per_layer("ffn_norm.bias", "hidden", "post_attention_layernorm.bias"),
        *attention(biased=True),
        OUTPUT_BIAS,
        per_layer("ffn_up.weight", "ffn hidden", "mlp.c_fc.weight"),
        per_layer("ffn_up.bias", "ffn", "mlp.c_fc.bias"),
        per_layer("ffn_down.weight", "hidden ffn", "mlp.c_proj.weight"),
        per_layer("ffn_down.bias", "hidden", "mlp.c_proj.bias"),
    ),
)

SMOLLM3 = Architecture(
    name="smollm3",
    model_type="smollm3",
    fields=FIELDS,
    required=REQUIRED,
    tensors=BODY + mlp(),
)

SEED_OSS = Architecture(
    name="seed_oss",
    model_type="seed_oss",
    fields=FIELDS | HEAD_SIZE,
    required=REQUIRED,
    tensors=(
        *FRAME,
        *NORMS_AROUND_ATTENTION,
        *ATTENTION,
        *mlp(),
    ),
    # For training only; without them transformers' model, which the engine runs, drops out.
    constants={"residual_dropout": 0.0, "attention_dropout": 0.0},
    derived=(has_tensor("attention_bias", "blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),),
)

HUNYUAN_DENSE = Architecture(
    name="hunyuan-dense",
    model_type="hunyuan_v1_dense",
    fields=FIELDS | HEAD_SIZE,
    required=REQUIRED,
    tensors=(*FRAME, *NORMS, *ATTENTION, *HUNYUAN_QK_NORM, *mlp()),
    constants={"use_qk_norm": True},
)

ARCHITECTURES = (HUNYUAN_DENSE, PHI3, STARCODER2, SMOLLM3, SEED_OSS)
