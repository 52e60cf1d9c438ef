"""Meta's Muse Glimmer: normed embeddings, gated attention, RoPE in layers with a window alone."""

from __future__ import annotations

from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import fraction, scale
from ascend_gguf.architectures.layers import SLIDING, sliding_unless
from ascend_gguf.architectures.llama import ATTENTION
from ascend_gguf.architectures.metadata import Attributes
from ascend_gguf.architectures.parts import FIELDS, HEAD_SIZE, OUTPUT, TIED_FRAME, mlp
from ascend_gguf.errors import CONVERT_AGAIN
from ascend_gguf.reader import GGUFFile


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


def _rotated(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``layer_rope_theta``: the base in each layer, zero in one that attends to everything."""
    theta = rope.unscaled(file)["rope_theta"]
    types = attributes["layer_types"]
    return {"layer_rope_theta": [theta if kind == SLIDING else 0.0 for kind in types]}


ARCHITECTURES = (
    Architecture(
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
            *ATTENTION,
            # In the configuration: see ``_query_factor``.
            per_layer("attn_q_norm.weight", "head"),
            per_layer("attn_k_norm.weight", "head"),
            per_layer("attn_gate.weight", "q hidden", "self_attn.output_gate_proj.weight"),
            *mlp(),
        ),
        constants={"post_norm_eps": 1e-8},
        derived=(sliding_unless(4), _rotated, _query_factor),
    ),
)
