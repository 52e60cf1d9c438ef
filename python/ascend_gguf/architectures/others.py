"""Families of one architecture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import Fields, as_field, fraction, scale
from ascend_gguf.architectures.layers import SLIDING, each_layer, has_tensor, sliding_unless
from ascend_gguf.architectures.llama import ATTENTION as LLAMA_ATTENTION
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
    OUTPUT,
    OUTPUT_NORM_BIAS,
    OWN_HEADS,
    OWN_WIDTHS,
    PLAIN_FIELDS,
    QK_NORM,
    TIED_FRAME,
    UP_DOWN,
    WINDOW,
    attention,
    linear,
    mlp,
)
from ascend_gguf.architectures.transforms import halves_from_pairs
from ascend_gguf.errors import CONVERT_AGAIN
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


def _original_context(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Tokens before queries grow; the engine looks for it beside the RoPE parameters."""
    found = number(file, "rope.scaling.original_context_length")
    return {"original_max_position_embeddings": found or attributes["max_position_embeddings"]}


@reads("attention.temperature_scale", "rope.scaling.yarn_log_multiplier")
def _mistral_rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """YaRN with a logarithm for all dimensions, and the temperature, which is of Llama 4."""
    found = rope.parameters(file, attributes) | _original_context(file, attributes)
    beta = number(file, "attention.temperature_scale", float, least=0)
    if beta:
        found["llama_4_scaling_beta"] = beta
    of_all = number(file, "rope.scaling.yarn_log_multiplier", float, least=0)
    if not of_all or found["rope_type"] != "yarn":
        return found
    rope.refuse_attention_factor(file, found)
    return found | {"mscale": 1.0, "mscale_all_dim": of_all}


#: Ministral 3, Devstral 2 and other models of Mistral whose attention has a temperature; those
#: before have the architecture of Llama.
MISTRAL3 = Architecture(
    name="mistral3",
    model_type="ministral3",
    fields=FIELDS | HEAD_SIZE,
    tensors=BODY + mlp(),
    rope=_mistral_rope,
    derived=(_original_context,),
)

#: Zero where a layer has none.
_DECI_SIZES: Fields = {
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


#: DeciLM and Llama-Nemotron: Llama, whose layers a search has made smaller, each for itself.  One
#: may have fewer heads for keys and values, a single matrix instead of attention, or no attention;
#: its feed-forward network has a width of its own, or is left out.
DECI = Architecture(
    name="deci",
    model_type="deci",
    causal_lm="DeciLMForCausalLM",
    fields=FIELDS | HEAD_SIZE | _DECI_SIZES,
    constants={"hidden_act": "silu"},
    tensors=(
        *FRAME,
        per_layer("attn_norm.weight", "hidden", "input_layernorm.weight", kind="mixing"),
        *attention(halves_from_pairs("heads"), halves_from_pairs("kv_heads"), kind="attending"),
        per_layer(
            "attn_output.weight", "hidden hidden", "self_attn.linear_attn.weight", kind="matrix"
        ),
        per_layer("ffn_norm.weight", "hidden", "post_attention_layernorm.weight", kind="feeding"),
        *mlp("feeding"),
    ),
    derived=(_one_number_of_heads,),
)


def _one_number(file: GGUFFile, name: str, layers: int) -> float | None:
    """The number that all weights of a norm are, in all layers; None if a layer lacks the norm.

    Raises:
        GGUFError: they differ.
    """
    found = None
    for layer in range(layers):
        tensor = file.tensors.get(f"blk.{layer}.{name}.weight")
        if tensor is None:
            return None
        weights = tensor.dequantize().flatten()
        found = weights[0].item() if found is None else found
        if not (weights == found).all():
            raise tensor.error(
                "SGLang's model has one factor for all queries, and none for keys",
                found=f"numbers from {weights.min():g} to {weights.max():g}, {found:g} before",
                expected="the same number in all of them",
                hint=CONVERT_AGAIN,
            )
    return found


def _query_factor(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``qk_scale_factor``: conversion makes a norm's weights of it, and ones of that of keys."""
    layers = attributes["num_hidden_layers"]
    q, k = (_one_number(file, f"attn_{part}_norm", layers) for part in "qk")
    if q is None or k is None:
        return {}  # the tensor is missing, which is an error by itself
    # The engine divides by the size of a head, transformers by its root.
    return {"qk_scale_factor": q * k * attributes["head_dim"] ** 0.5}


def _rotated_in_windows(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``layer_rope_theta``: the base in each layer, zero in one that attends to everything."""
    theta = rope.unscaled(file)["rope_theta"]
    types = attributes["layer_types"]
    return {"layer_rope_theta": [theta if kind == SLIDING else 0.0 for kind in types]}


#: Meta's: normed embeddings, gated attention, RoPE in layers with a window alone.
MUSE_GLIMMER = Architecture(
    name="muse-glimmer",
    # Of its text: the engine's own configuration of the whole has other words for it.
    model_type="muse_glimmer_text",
    causal_lm="MuseGlimmerForCausalLM",
    fields=FIELDS
    | HEAD_SIZE
    | {
        "attention.sliding_window": "sliding_window",
        "logit_scale": fraction("output_multiplier"),
        "final_logit_softcapping": scale("final_logit_softcapping"),
    },
    defaults={"final_logit_softcapping": 0.0},
    tensors=(
        *TIED_FRAME,
        replace(OUTPUT, optional=False),
        per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
        per_layer("post_attention_norm.weight", "hidden", "post_attn_norm.weight"),
        per_layer("ffn_norm.weight", "hidden", "post_attention_layernorm.weight"),
        per_layer("post_ffw_norm.weight", "hidden", "post_ffn_norm.weight"),
        *LLAMA_ATTENTION,
        # In the configuration: see ``_query_factor``.
        per_layer("attn_q_norm.weight", "head"),
        per_layer("attn_k_norm.weight", "head"),
        per_layer("attn_gate.weight", "q hidden", "self_attn.output_gate_proj.weight"),
        *mlp(),
    ),
    constants={"post_norm_eps": 1e-8},
    derived=(sliding_unless(4), _rotated_in_windows, _query_factor),
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
    MISTRAL3,
    DECI,
    MUSE_GLIMMER,
)
