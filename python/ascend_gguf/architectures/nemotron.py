"""Nemotron-H: blocks of one thing each: Mamba-2, attention, a feed-forward network or experts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import Field, Fields, flag, length, required, scale
from ascend_gguf.architectures.mamba2 import biases, inner_size, mixer
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    EMBEDDING,
    FIELDS,
    HEAD_SIZE,
    LAYER_NORM_EPSILON,
    OUTPUT,
    RMS_NORM_EPSILON,
    attention,
    expert_fields,
    linear,
    mlp,
    router_bias,
    shared_expert,
    without,
)
from ascend_gguf.reader import GGUFFile

#: One value for each block, which tell what it is.
_BY_BLOCK = ("attention.head_count_kv", "feed_forward_length")
_FIELDS: Fields = (
    without(FIELDS, *_BY_BLOCK)
    | required(HEAD_SIZE)
    | {
        RMS_NORM_EPSILON: Field("layer_norm_epsilon", float, 0),
        "ssm.conv_kernel": "conv_kernel",
        "ssm.state_size": "ssm_state_size",
        "ssm.group_count": "n_groups",
        "ssm.time_step_rank": "mamba_num_heads",
    }
)


def _of_blocks(file: GGUFFile, key: str, blocks: int) -> list[int]:
    values = np.atleast_1d(file.arch_field(key))
    if len(values) < blocks or values.dtype.kind not in "iu" or len({*values.tolist()} - {0}) > 1:
        raise file.error(
            "the model needs one value for each block, zero or one number",
            key,
            found=f"{len(values)} values: {values.tolist()[:8]}",
            expected=f"{blocks} values",
        )
    return values.tolist()[:blocks]


@reads(*_BY_BLOCK)
def _blocks(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``hybrid_override_pattern``, a letter for each block, and the sizes of its kinds."""
    blocks, heads = attributes["num_hidden_layers"], attributes["num_attention_heads"]
    kv_heads = _of_blocks(file, "attention.head_count_kv", blocks)
    widths = _of_blocks(file, "feed_forward_length", blocks)
    network = "E" if number(file, "expert_count", least=0) else "-"
    letters = {(False, False): "M", (True, False): "*", (False, True): network}
    kinds = [letters.get((kv > 0, width > 0)) for kv, width in zip(kv_heads, widths, strict=True)]
    if not {"M", "*"} <= set(kinds) or None in kinds or heads % max(kv_heads):
        raise file.error(
            "the model needs blocks of Mamba-2 and of attention, and blocks of one thing each",
            "attention.head_count_kv",
            found=f"{kv_heads[:8]}, beside feed_forward_length {widths[:8]}",
            expected=f"zero where that is not, and one number of which {heads} is a multiple",
        )
    return {
        "hybrid_override_pattern": "".join(kind for kind in kinds if kind),
        "num_key_value_heads": max(kv_heads),
        "intermediate_size": max(*widths, 1),
    }


@reads("ssm.inner_size", LAYER_NORM_EPSILON)
def _state(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``mamba_head_dim``, which parts have a bias, and the epsilon of norms."""
    heads = attributes["mamba_num_heads"]
    found = {
        "mamba_head_dim": inner_size(file, heads, attributes["n_groups"]) // heads,
        **biases(file, "use_conv_bias", "use_bias"),
    }
    if "layer_norm_epsilon" not in attributes:
        epsilon = number(file, LAYER_NORM_EPSILON, float, 0, required=True)
        found["layer_norm_epsilon"] = epsilon
    return found


def _of_mixer(name: str) -> str:
    """The model's name of a projection, where all there is is a mixer."""
    return name.replace("self_attn.", "mixer.")


_BODY = (
    EMBEDDING,
    Rename("output_norm.weight", "hidden", "model.norm_f.weight"),
    OUTPUT,
    per_layer("attn_norm.weight", "hidden", "norm.weight"),
    *mixer("mixer", "linear"),
    *(rule.renamed(_of_mixer) for rule in attention(kind="full")),
)
_CONSTANTS = {"mlp_hidden_act": "relu2", "mlp_bias": False}


def _experts() -> tuple[Rename, ...]:
    expert, kind = "mixer.experts.{expert}", "experts"
    up, down = "experts expert_ffn latent", "experts latent expert_ffn"
    latent = f"{kind} latent"
    return (
        per_layer("ffn_gate_inp.weight", "experts hidden", "mixer.gate.weight", kind=kind),
        router_bias("mixer.gate.e_score_correction_bias", kind),
        per_layer("ffn_up_exps.weight", up, f"{expert}.up_proj.weight", kind=kind),
        per_layer("ffn_down_exps.weight", down, f"{expert}.down_proj.weight", kind=kind),
        *linear("ffn_latent_down", "latent", "hidden", "mixer.fc1_latent_proj", latent, False),
        *linear("ffn_latent_up", "hidden", "latent", "mixer.fc2_latent_proj", latent, False),
        *shared_expert("mixer.shared_experts", kind, gated=False),
    )


_DENSE = Architecture(
    name="nemotron_h",
    model_type="nemotron_h",
    fields=_FIELDS,
    tensors=_BODY + mlp("network", "mixer", gated=False),
    constants=_CONSTANTS,
    rope=rope.absent,
    derived=(_blocks, _state),
)

ARCHITECTURES = (
    _DENSE,
    replace(
        _DENSE,
        name="nemotron_h_moe",
        fields=_FIELDS
        | expert_fields("n_routed_experts")
        | {
            "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
            "expert_weights_scale": scale("routed_scaling_factor"),
            "expert_weights_norm": flag("norm_topk_prob"),
            "expert_group_count": length("n_group"),
            "expert_group_used_count": length("topk_group"),
            # Of Nemotron 3 Super: experts work on a smaller vector.
            "moe_latent_size": length("moe_latent_size"),
        },
        defaults={
            "routed_scaling_factor": 1.0,
            "norm_topk_prob": False,
            "n_group": 1,
            "topk_group": 1,
        },
        fixed={"expert_gating_func": (2,), "expert_shared_count": (1,)},
        tensors=_BODY + _experts(),
        constants=_CONSTANTS | {"n_shared_experts": 1},
    ),
)
