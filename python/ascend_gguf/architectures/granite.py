"""IBM's Granite, its mixtures of experts, and Granite 4 with Mamba-2 in most layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, per_layer
from ascend_gguf.architectures.fields import Field, fraction, scale
from ascend_gguf.architectures.layers import (
    attends_where_heads,
    flags_of_layers,
    query_scale,
    sliding_unless,
)
from ascend_gguf.architectures.llama import BODY, has_experts
from ascend_gguf.architectures.mamba2 import STATE, mixer, state
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    FIELDS,
    FRAME,
    NORMS,
    SOFTMAX_ROUTER,
    WINDOW,
    attention,
    experts,
    mlp,
    shared_expert,
    without,
)
from ascend_gguf.architectures.transforms import halves_from_pairs
from ascend_gguf.reader import GGUFFile

_FIELDS = FIELDS | {
    "attention.scale": scale("attention_multiplier"),
    "embedding_scale": scale("embedding_multiplier"),
    "residual_scale": scale("residual_multiplier"),
    "logit_scale": fraction("logits_scaling"),
}
_DEFAULTS = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0}
_SHARED_WIDTH = {"expert_shared_feed_forward_length": Field("shared_intermediate_size")}
_EXPERT_FIELDS = {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}

_HYBRID_FIELDS = without(_FIELDS, "attention.head_count_kv") | STATE
_HYBRID_FIELDS |= {"logit_scale": scale("logits_scaling")}
_HYBRID_BODY = (
    *FRAME,
    *NORMS,
    *attention(halves_from_pairs("heads"), halves_from_pairs("kv_heads"), kind="full"),
    *mixer("mamba", "linear"),
)


def _without_positions(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``position_embedding_type``: without the key llama.cpp takes a rotary embedding."""
    number(file, "rope.scaling.finetuned", bool, required=True)
    return {"position_embedding_type": "nope"}


def _dense_width(attribute: str) -> Callable[[GGUFFile, Attributes], Attributes]:
    """The width of what every layer has; where two keys say one, it is that of a shared expert."""

    @reads("expert_shared_feed_forward_length")
    def width(file: GGUFFile, attributes: Attributes) -> Attributes:
        shared = number(file, "expert_shared_feed_forward_length", least=0)
        return {attribute: shared or attributes["intermediate_size"]}

    return width


_HYBRID_DERIVED = (
    _without_positions,
    attends_where_heads("full_attention", "linear_attention"),
    query_scale,
    state,
)
#: No positions: llama.cpp's switch for a rotary embedding is off.
_NO_ROPE = {"rope.scaling.finetuned": (False,)}
#: What every layer has, where there are no experts that are chosen.
_SHARED_MLP = mlp(
    module="shared_mlp", names=("gate_proj", "up_proj", "output_linear"), width="shared_ffn"
)


@reads("attention.rope_pattern")
def _rotated(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``layer_rope_theta``: the base in each layer, zero in one without a rotary embedding."""
    theta = rope.unscaled(file)["rope_theta"]
    rotated = flags_of_layers(file, "attention.rope_pattern", attributes["num_hidden_layers"])
    return {"layer_rope_theta": [theta * turned for turned in rotated]}


_SINKS = per_layer("attn_sinks.weight", "heads", "self_attn.sinks")

#: Some layers have a window, and all of them sinks.
_SWA = Architecture(
    name="granite_swa",
    model_type="granite_swa",
    fields=_FIELDS | WINDOW,
    defaults=_DEFAULTS,
    tensors=(*BODY, *mlp(), _SINKS),
    derived=(query_scale, sliding_unless(4, first=True), _rotated),
)
_SWA_MOE = replace(
    _SWA,
    mark=has_experts,
    model_type="granitemoe_swa",
    fields=_FIELDS | WINDOW | _EXPERT_FIELDS | _SHARED_WIDTH,
    defaults=_DEFAULTS | {"shared_intermediate_size": 0},
    fixed=SOFTMAX_ROUTER,
    tensors=(
        *BODY,
        _SINKS,
        *experts("block_sparse_moe"),
        per_layer(
            "ffn_up_shexp.weight",
            "2*shared_ffn hidden",
            "shared_mlp.gate_proj.weight",
            "shared_mlp.up_proj.weight",
            kind="shared",
        ),
        per_layer(
            "ffn_down_shexp.weight",
            "hidden shared_ffn",
            "shared_mlp.output_linear.weight",
            kind="shared",
        ),
    ),
)

_DENSE = Architecture(
    name="granite",
    model_type="granite",
    fields=_FIELDS,
    defaults=_DEFAULTS,
    # llama.cpp's switch for no RoPE at all.
    fixed={"rope.scaling.finetuned": (True,)},
    tensors=BODY + mlp(),
    derived=(query_scale, _dense_width("intermediate_size")),
)

_MOE = Architecture(
    name="granitemoe",
    model_type="granitemoe",
    fields=_FIELDS | _EXPERT_FIELDS,
    defaults=_DEFAULTS,
    fixed=SOFTMAX_ROUTER,
    # Not the stacked tensors of its checkpoints: the engine also loads single experts.
    tensors=BODY + experts("block_sparse_moe"),
    derived=(query_scale,),
)

_HYBRID = Architecture(
    name="granitehybrid",
    model_type="granitemoehybrid",
    fields=_HYBRID_FIELDS,
    defaults=_DEFAULTS | {"logits_scaling": 1.0},
    fixed=_NO_ROPE,
    tensors=_HYBRID_BODY + _SHARED_MLP,
    constants={"num_local_experts": 0, "num_experts_per_tok": 0},
    rope=rope.absent,
    derived=(*_HYBRID_DERIVED, _dense_width("shared_intermediate_size")),
)

ARCHITECTURES = (
    _SWA_MOE,
    _SWA,
    _DENSE,
    replace(_DENSE, name="granitemoe", mark=lambda file: not has_experts(file), fixed={}),
    replace(
        _MOE,
        mark=lambda file: bool(number(file, "expert_shared_feed_forward_length", least=0)),
        model_type="granitemoeshared",
        fields=_FIELDS | _EXPERT_FIELDS | _SHARED_WIDTH,
        tensors=_MOE.tensors + shared_expert("shared_mlp", down="output_linear"),
    ),
    _MOE,
    replace(
        _HYBRID,
        mark=has_experts,
        fields=_HYBRID_FIELDS | _EXPERT_FIELDS | _SHARED_WIDTH,
        defaults=_DEFAULTS | {"logits_scaling": 1.0, "shared_intermediate_size": 0},
        fixed=SOFTMAX_ROUTER | _NO_ROPE,
        tensors=_HYBRID_BODY
        + experts("block_sparse_moe")
        + shared_expert("shared_mlp", "shared", "output_linear"),
        constants={},
        derived=_HYBRID_DERIVED,
    ),
    _HYBRID,
)
