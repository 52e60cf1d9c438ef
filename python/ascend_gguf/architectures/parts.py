"""Keys and tensors that many architectures share."""

from __future__ import annotations

from typing import Any

from ascend_gguf.architectures.base import Rename, per_layer
from ascend_gguf.architectures.fields import (
    Field,
    Fields,
    count,
    flag,
    fraction,
    length,
    required,
    scale,
)
from ascend_gguf.architectures.transforms import Transform, minus_one, of_parts

RMS_NORM_EPSILON = "attention.layer_norm_rms_epsilon"
LAYER_NORM_EPSILON = "attention.layer_norm_epsilon"

FIELDS: Fields = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": Field("num_key_value_heads"),
    RMS_NORM_EPSILON: fraction("rms_norm_eps"),
}
#: Of models whose layers may differ in them.
OWN_KV_HEADS: Fields = {"attention.head_count_kv": Field("num_key_value_heads", by_layer=True)}
OWN_HEADS: Fields = OWN_KV_HEADS | {
    "attention.head_count": Field("num_attention_heads", required=True, by_layer=True)
}
OWN_WIDTHS: Fields = {
    "feed_forward_length": Field("intermediate_size", required=True, by_layer=True)
}
#: Its width, of models with experts in all layers.
OPTIONAL_WIDTH: Fields = {"feed_forward_length": Field("intermediate_size")}


def without(fields: Fields, *keys: str) -> Fields:
    """The fields but for some keys."""
    return {key: field for key, field in fields.items() if key not in keys}


#: Without an epsilon, and with that of LayerNorm, which some configurations call differently.
PLAIN_FIELDS = without(FIELDS, RMS_NORM_EPSILON)
LAYER_NORM_FIELDS = PLAIN_FIELDS | {LAYER_NORM_EPSILON: fraction("layer_norm_eps")}

#: Of models that may have bidirectional attention, for embeddings: read by what serves these.
CAUSAL = frozenset({"attention.causal"})

HEAD_SIZE: Fields = {"attention.key_length": length("head_dim")}
WINDOW: Fields = {"attention.sliding_window": length("sliding_window")}

EMBEDDING = Rename("token_embd.weight", "vocab hidden", "model.embed_tokens.weight")
#: Absent with tied embeddings.
OUTPUT = Rename("output.weight", "vocab hidden", "lm_head.weight", optional=True)
#: Of models whose embeddings are always tied.
TIED_FRAME = (EMBEDDING, Rename("output_norm.weight", "hidden", "model.norm.weight"))
FRAME = (*TIED_FRAME, OUTPUT)
OUTPUT_NORM_BIAS = Rename("output_norm.bias", "hidden", "model.norm.bias")

NORMS = (
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
    per_layer("ffn_norm.weight", "hidden", "post_attention_layernorm.weight"),
)

#: Those of LayerNorm, with a bias.
BIASED_NORMS = (
    *NORMS,
    per_layer("attn_norm.bias", "hidden", "input_layernorm.bias"),
    per_layer("ffn_norm.bias", "hidden", "post_attention_layernorm.bias"),
)

#: The same, for files that name the second norm after what it follows.
NORMS_AROUND_ATTENTION = (
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
    per_layer("post_attention_norm.weight", "hidden", "post_attention_layernorm.weight"),
)


#: Options of a norm that multiplies by ``1 + weight``; files hold the sum.
OFFSET: dict[str, Any] = {"undo": minus_one, "dense": True}
OFFSET_OUTPUT_NORM = Rename("output_norm.weight", "hidden", "model.norm.weight", **OFFSET)


def linear(
    gguf: str, rows: str, columns: str, hf: str, kind: str = "", biased: bool = True
) -> tuple[Rename, ...]:
    """Weight and bias of a linear layer, in blocks of a kind; those of a norm have no columns.

    Args:
        biased: this layer always has a bias; else the file says.
    """
    weight = f"{rows} {columns}".strip()
    return (
        per_layer(f"{gguf}.weight", weight, f"{hf}.weight", kind=kind),
        per_layer(f"{gguf}.bias", rows, f"{hf}.bias", kind=kind, optional=not biased),
    )


def attention(
    q: Transform | None = None,
    k: Transform | None = None,
    biased: bool = False,
    q_rows: str = "q",
    kind: str = "",
    output: str = "self_attn.o_proj",
    output_biased: bool = False,
) -> tuple[Rename, ...]:
    """Projections of attention: q, k and v separate or merged, each with or without bias.

    Args:
        q, k: undo what conversion did to the rows of queries and keys.
        biased: q, k and v of this architecture always have a bias.
        q_rows: the dimension of the query projection's rows, if it has more than queries.
        kind: the kind of layer that has them.
        output: the model's name of the output projection.
        output_biased: the output projection of this architecture always has a bias.
    """
    parts = {"q": q_rows, "k": "kv", "v": "kv"}
    return (
        *qkv(parts, kind, undos=(q, k)),
        *qkv(parts, kind, "bias", "", (q, k), optional=not biased),
        *linear("attn_output", "hidden", "q", output, kind, output_biased),
    )


def qkv(
    parts: dict[str, str],
    kind: str = "",
    which: str = "weight",
    columns: str = " hidden",
    undos: tuple[Transform | None, Transform | None] = (None, None),
    optional: bool = False,
) -> tuple[Rename, ...]:
    """Queries, keys and values, apart or in one tensor.

    Args:
        parts: ``q``, ``k`` and ``v`` to the dimensions of their rows.
        kind: the kind of layer that has them.
        which: ``weight`` or ``bias``.
        columns: the dimension of columns, after a space.
        undos: what undoes conversion of the rows of queries and of keys.
        optional: a file may have none.
    """
    names = {part: f"self_attn.{part}_proj.{which}" for part in parts}
    fused, rows = f"attn_qkv.{which}", " ".join(parts.values())
    return (
        *(
            per_layer(
                f"attn_{part}.{which}",
                size + columns,
                names[part],
                optional=optional,
                unless=fused,
                undo=undo,
                kind=kind,
            )
            for (part, size), undo in zip(parts.items(), (*undos, None), strict=True)
        ),
        per_layer(
            fused,
            rows.replace(" ", "+") + columns,
            *names.values(),
            optional=True,
            rows=rows,
            undo=of_parts(rows, *undos, None),
            kind=kind,
        ),
    )


#: Attention whose rotary embedding turns the first half of a head with the second.
ATTENTION = attention()

#: A model with such attention, but for its feed-forward networks.
NEOX_BODY = FRAME + NORMS + ATTENTION
NEOX_BIASED_BODY = FRAME + NORMS + attention(biased=True)


def qk_norm(
    q: str = "self_attn.q_norm",
    k: str = "self_attn.k_norm",
    shapes: tuple[str, str] = ("head", "head"),
    **options: Any,
) -> tuple[Rename, ...]:
    """Norms of queries and of keys.

    Args:
        q, k: the model's names.
        shapes: of their weights.
        options: of both, as of :class:`Rename`.
    """
    return (
        per_layer("attn_q_norm.weight", shapes[0], f"{q}.weight", **options),
        per_layer("attn_k_norm.weight", shapes[1], f"{k}.weight", **options),
    )


QK_NORM = qk_norm()
HUNYUAN_QK_NORM = qk_norm("self_attn.query_layernorm", "self_attn.key_layernorm")
#: Over all heads at once.
JOINT_QK_NORM = qk_norm(shapes=("q", "kv"))


#: The gate, up and down projection of a feed-forward network.
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def mlp(
    kind: str = "",
    module: str = "mlp",
    names: tuple[str, str, str] = _PROJECTIONS,
    width: str = "ffn",
    suffix: str = "",
    gated: bool = True,
) -> tuple[Rename, ...]:
    """A feed-forward network, each projection with or without bias.

    Args:
        kind: the kind of layer that has it.
        module: the model's module, with projections of these ``names``.
        width: the dimension between up and down projection.
        suffix: of the tensors' names in the file.
        gated: it has a gate projection.
    """
    gate, up, down = (f"{module}.{name}" for name in names)
    return (
        *linear(f"ffn_gate{suffix}", width, "hidden", gate, kind, biased=False) * gated,
        *linear(f"ffn_up{suffix}", width, "hidden", up, kind, biased=False),
        *linear(f"ffn_down{suffix}", "hidden", width, down, kind, biased=False),
    )


#: A dense feed-forward network without a gate.
UP_DOWN = mlp(gated=False)

#: A dense feed-forward network whose gate and up projections are one tensor.
FUSED_MLP = (
    per_layer("ffn_up.weight", "2*ffn hidden", "mlp.gate_up_proj.weight"),
    per_layer("ffn_down.weight", "hidden ffn", "mlp.down_proj.weight"),
)


def experts(
    module: str = "mlp",
    names: tuple[str, str, str] = _PROJECTIONS,
    router: str = "gate.weight",
    kind: str = "",
) -> tuple[Rename, ...]:
    """A mixture of experts, stacked; gate and up may be one tensor.

    Args:
        module: the module of a layer with the router and ``experts``; the layer itself if empty.
        names: the gate, up and down projection of an expert.
        router: the router's matrix.
        kind: the kind of layer that has them.
    """
    prefix = f"{module}." if module else ""
    gate, up, down = (f"{prefix}experts.{{expert}}.{name}.weight" for name in names)
    fused = "ffn_gate_up_exps.weight"
    shape = "experts expert_ffn hidden"
    return (
        per_layer("ffn_gate_inp.weight", "experts hidden", f"{prefix}{router}", kind=kind),
        per_layer("ffn_gate_exps.weight", shape, gate, unless=fused, kind=kind),
        per_layer("ffn_up_exps.weight", shape, up, unless=fused, kind=kind),
        per_layer(fused, "experts 2*expert_ffn hidden", gate, up, optional=True, kind=kind),
        per_layer("ffn_down_exps.weight", "experts hidden expert_ffn", down, kind=kind),
    )


def router_bias(hf: str, kind: str = "sparse") -> Rename:
    """What is added to the router's scores when experts are chosen."""
    return per_layer("exp_probs_b.bias", "experts", hf, kind=kind)


def shared_expert(
    module: str, kind: str = "", down: str = "down_proj", gated: bool = True
) -> tuple[Rename, ...]:
    """A shared expert, or several merged into one."""
    return mlp(kind, module, ("gate_proj", "up_proj", down), "shared_ffn", "_shexp", gated)


#: Dense feed-forward networks in some layers, in the others experts and shared ones.
DENSE_OR_SPARSE = (
    *mlp("dense"),
    *experts(kind="sparse"),
    *shared_expert("mlp.shared_experts", kind="sparse"),
)


def expert_fields(
    count: str, used: str = "num_experts_per_tok", width: str = "moe_intermediate_size"
) -> Fields:
    """How many experts there are, how many of them a token has, and how wide one is."""
    return {"expert_count": count, "expert_used_count": used, "expert_feed_forward_length": width}


#: The same, beside shared experts.
ROUTED_FIELDS = expert_fields("n_routed_experts") | required(
    {"expert_shared_count": count("n_shared_experts")}
)

#: Group-limited routing, in layers after some dense ones: DeepSeek and similar models.
GROUPED_ROUTING: Fields = {
    "expert_group_count": length("n_group"),
    "expert_group_used_count": length("topk_group"),
    "expert_weights_scale": scale("routed_scaling_factor"),
    "expert_weights_norm": flag("norm_topk_prob"),
    "leading_dense_block_count": count("first_k_dense_replace"),
}
UNGROUPED_ROUTING = without(GROUPED_ROUTING, "expert_group_count", "expert_group_used_count")

#: How routers score experts (gguf ``ExpertGatingFuncType``).
SIGMOID = 2

#: A softmax router with normalized top-k weights.
SOFTMAX_ROUTER = {"expert_gating_func": (1,), "expert_weights_norm": (True,)}

GROUPED_DEFAULTS = {
    "routed_scaling_factor": 1.0,
    "norm_topk_prob": False,
    "first_k_dense_replace": 0,
}
