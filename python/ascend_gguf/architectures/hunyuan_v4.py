"""Hunyuan 4: gated latent attention with sinks, between streams that layers read and add to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.deepseek import (
    HEAD_SIZES,
    INDEXER,
    INDEXER_TYPES,
    LATENT_ATTENTION,
    LATENT_FIELDS,
    head_sizes,
)
from ascend_gguf.architectures.fields import Field, count, fraction, length
from ascend_gguf.architectures.layers import dense_layers, numbers_of_layers
from ascend_gguf.architectures.metadata import Attributes, reads
from ascend_gguf.architectures.parts import (
    DENSE_OR_SPARSE,
    FIELDS,
    FRAME,
    NORMS,
    ROUTED_FIELDS,
    SIGMOID,
    UNGROUPED_ROUTING,
    router_bias,
)
from ascend_gguf.reader import GGUFFile

_CLAMP = "swiglu_clamp_exp"


@reads(_CLAMP)
def _clamp(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``swiglu_limit``: one of all layers with experts; zero is none."""
    limits = numbers_of_layers(file, _CLAMP, attributes["num_hidden_layers"])
    distinct = sorted(set(limits[attributes["first_k_dense_replace"] :])) or [0.0]
    if len(distinct) > 1:
        raise file.error(
            "SGLang's model clamps the experts of all layers alike",
            _CLAMP,
            found=f"{distinct!s:.80}",
            expected="one number for all layers with experts",
            hint=None,
        )
    return {"swiglu_limit": distinct[0]}


def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    found = rope.parameters(file, attributes)
    rope.refuse_attention_factor(file, found)
    return found


def _latent_attention() -> Iterator[Rename]:
    """DeepSeek's, with queries of latent vectors, and halves of kv_b, always."""
    for rule in LATENT_ATTENTION:
        if not rule.gguf.endswith((".attn_q.weight", ".attn_kv_b.weight")):
            yield replace(rule, optional=False, unless=None)


def _streams(gguf: str, hf: str) -> tuple[Rename, ...]:
    """What a part of a layer reads of the streams, and what of its output it adds to each."""
    hf = f"{hf}.hc_pre.hc_"
    return (
        per_layer(f"{gguf}_fn.weight", "2*streams streams*hidden", f"{hf}fn.weight"),
        per_layer(f"{gguf}_base.weight", "2*streams", f"{hf}base"),
        per_layer(f"{gguf}_scale.weight", "2", f"{hf}scale"),
    )


#: Up to ``sparse_attention_size`` tokens of context its attention is to all of them, as that of
#: :mod:`.deepseek`; files without an indexer have no such limit.
HUNYUAN_V4 = Architecture(
    name="hy_v4",
    model_type="hy_v4",
    fields=FIELDS
    | LATENT_FIELDS
    | ROUTED_FIELDS
    | UNGROUPED_ROUTING
    | {
        "attention.q_lora_rank": "q_lora_rank",
        "attention.indexer.head_count": count("indexer_heads"),
        "attention.indexer.key_length": count("indexer_head_size"),
        "attention.indexer.top_k": length("sparse_attention_size"),
        "hyper_connection.count": "hc_mult",
        "hyper_connection.epsilon": fraction("hc_eps"),
        "hyper_connection.magnitude": Field("hc_magnitude", float, 0, required=True),
    },
    defaults={
        "routed_scaling_factor": 1.0,
        "norm_topk_prob": False,
        "first_k_dense_replace": 0,
        "indexer_heads": 0,
        "indexer_head_size": 0,
        "sparse_attention_size": None,
    },
    reads=HEAD_SIZES | {INDEXER_TYPES},
    fixed={"expert_gating_func": (SIGMOID,)},
    tensors=(
        *(replace(rule, optional=False) for rule in FRAME),
        Rename("output_hc_fn.weight", "streams streams*hidden", "model.hc_head.hc_head_fn.weight"),
        Rename("output_hc_base.weight", "streams", "model.hc_head.hc_head_base"),
        Rename("output_hc_scale.weight", "1", "model.hc_head.hc_head_scale"),
        *NORMS,
        *_latent_attention(),
        per_layer("attn_gate.weight", "heads*v_head hidden", "self_attn.linear_gate.weight"),
        per_layer("attn_sinks.weight", "heads", "self_attn.learnable_sink_param"),
        *INDEXER,
        *_streams("hc_attn", "hc_attn_layer"),
        *_streams("hc_ffn", "hc_mlp_layer"),
        *DENSE_OR_SPARSE,
        router_bias("mlp.gate.e_score_correction_bias"),
    ),
    rope=_rope,
    constants={
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "n_group": 1,
        "topk_group": 1,
        "moe_layer_freq": 1,
        "router_fp32": True,
        "learnable_sink": True,
        # Logits are of the model's dtype, as those of all models here.
        "enable_lm_head_fp32": False,
    },
    derived=(head_sizes, dense_layers, _clamp),
    # By the first, which is no class, SGLang takes it for a model that attends to everything.
    causal_lm=("HYV4", "HYV4ForCausalLM"),
)

ARCHITECTURES = (HUNYUAN_V4,)
