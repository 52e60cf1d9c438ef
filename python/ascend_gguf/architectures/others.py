"""Families of one architecture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import fraction
from ascend_gguf.architectures.layers import has_tensor, sliding_unless
from ascend_gguf.architectures.llama import BODY
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    ATTENTION,
    BIASED_NORMS,
    FIELDS,
    FRAME,
    FUSED_MLP,
    HEAD_SIZE,
    HUNYUAN_QK_NORM,
    LAYER_NORM_EPSILON,
    NEOX_BODY,
    NORMS,
    NORMS_AROUND_ATTENTION,
    OUTPUT_NORM_BIAS,
    PLAIN_FIELDS,
    QK_NORM,
    UP_DOWN,
    WINDOW,
    attention,
    linear,
    mlp,
)
from ascend_gguf.reader import GGUFFile

PHI3 = Architecture(
    name="phi3",
    model_type="phi3",
    fields=FIELDS | WINDOW,
    tensors=NEOX_BODY + FUSED_MLP,
    rope=rope.longrope,
    defaults={"sliding_window": None},
    # The engine reads the factor outside the RoPE parameters.
    derived=(rope.partial_factor,),
)

STARCODER2 = Architecture(
    name="starcoder2",
    model_type="starcoder2",
    fields=PLAIN_FIELDS | {LAYER_NORM_EPSILON: fraction("norm_epsilon")},
    fixed={"hidden_activation": ("gelu_pytorch_tanh",)},
    tensors=(
        *FRAME,
        OUTPUT_NORM_BIAS,
        *BIASED_NORMS,
        *attention(),
        *linear("ffn_up", "ffn", "hidden", "mlp.c_fc", biased=False),
        *linear("ffn_down", "hidden", "ffn", "mlp.c_proj", biased=False),
    ),
    derived=(has_tensor("use_bias", "blk.0.attn_output.bias"),),
)

SMOLLM3 = Architecture(name="smollm3", model_type="smollm3", fields=FIELDS, tensors=BODY + mlp())

SEED_OSS = Architecture(
    name="seed_oss",
    model_type="seed_oss",
    fields=FIELDS | HEAD_SIZE,
    tensors=FRAME + NORMS_AROUND_ATTENTION + ATTENTION + mlp(),
    # For training only; without them transformers' model, which the engine runs, drops out.
    constants={"residual_dropout": 0.0, "attention_dropout": 0.0},
    derived=(has_tensor("attention_bias", "blk.0.attn_q.bias", "blk.0.attn_qkv.bias"),),
)

HUNYUAN_DENSE = Architecture(
    name="hunyuan-dense",
    model_type="hunyuan_v1_dense",
    fields=FIELDS | HEAD_SIZE,
    tensors=NEOX_BODY + HUNYUAN_QK_NORM + mlp(),
    constants={"use_qk_norm": True},
)


@reads("rope.scaling.alpha")
def _larger_base(file: GGUFFile, attributes: Attributes) -> Attributes:
    """NTK-aware scaling, which makes the base larger (``load_arch_hparams`` of llama.cpp)."""
    found = rope.parameters(file, attributes)
    alpha, head = number(file, "rope.scaling.alpha", float, least=0), attributes["head_dim"]
    if alpha:
        found["rope_theta"] *= alpha ** (head / (head - 2))
    return found


#: The text of HunyuanOCR, which has one position in all sections of the rotary embedding.
HUNYUAN_VL = replace(
    HUNYUAN_DENSE,
    name="hunyuan_vl",
    reads=frozenset({"rope.dimension_sections"}),
    rope=_larger_base,
)

ARCEE = Architecture(
    name="arcee", model_type="arcee", fields=FIELDS | HEAD_SIZE, tensors=BODY + UP_DOWN
)

_XIELU = ("alpha_n", "alpha_p", "beta", "eps")


def _activations(file: GGUFFile, attributes: Attributes) -> Attributes:
    """The numbers of each layer's xIELU, whose keys do not begin with the architecture."""
    layers = attributes["num_hidden_layers"]
    found = {}
    for name in _XIELU:
        values = file.metadata.get(f"xielu.{name}")
        each = np.atleast_1d(values if isinstance(values, (float, np.ndarray)) else ())
        if each.dtype.kind != "f" or len(each) not in (1, layers) or not np.isfinite(each).all():
            raise file.error(
                "invalid numbers of the activation",
                f"xielu.{name}",
                found=f"{values!r:.80}",
                expected=f"a finite number for each of {layers} layers, or one for all",
            )
        found[name] = np.broadcast_to(each, layers).tolist()
    return {"xielu": found}


APERTUS = Architecture(
    name="apertus",
    model_type="apertus",
    fields=FIELDS | HEAD_SIZE,
    tensors=(
        *FRAME,
        per_layer("attn_norm.weight", "hidden", "attention_layernorm.weight"),
        per_layer("ffn_norm.weight", "hidden", "feedforward_layernorm.weight"),
        *ATTENTION,
        *QK_NORM,
        *UP_DOWN,
    ),
    derived=(_activations,),
)

ERNIE4_5 = Architecture(
    name="ernie4_5",
    model_type="ernie4_5",
    causal_lm="Ernie4_5_ForCausalLM",
    fields=FIELDS | HEAD_SIZE,
    tensors=NEOX_BODY + mlp(),
)

#: Each head of attention has a gate.
SPARK = Architecture(
    name="spark2_5",
    model_type="spark2_5",
    causal_lm="Spark2_5ForCausalLM",
    fields=FIELDS | HEAD_SIZE | {"attention.sliding_window": "sliding_window"},
    fixed={"hidden_activation": ("gelu", "gelu_pytorch_tanh")},
    tensors=(
        *FRAME,
        *NORMS,
        per_layer("attn_qkv.weight", "q+2*kv hidden", "self_attn.q_k_v_proj.weight"),
        per_layer("attn_gate.weight", "heads hidden", "self_attn.g_proj.weight"),
        per_layer("attn_output.weight", "hidden q", "self_attn.out_proj.weight"),
        *mlp(),
    ),
    rope=rope.partial_by_layer_type(scaled=True),
    derived=(sliding_unless(4),),
)

ARCHITECTURES = (
    APERTUS,
    ARCEE,
    ERNIE4_5,
    HUNYUAN_DENSE,
    HUNYUAN_VL,
    PHI3,
    STARCODER2,
    SMOLLM3,
    SEED_OSS,
    SPARK,
)
