"""Mixtures of experts, one architecture each."""

from __future__ import annotations

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import Field, count, flag, length, required, scale
from ascend_gguf.architectures.layers import has_tensor, sliding_unless
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.architectures.parts import (
    ATTENTION,
    DENSE_OR_SPARSE,
    FIELDS,
    FRAME,
    HEAD_SIZE,
    HUNYUAN_QK_NORM,
    JOINT_QK_NORM,
    LAYER_NORM_EPSILON,
    NEOX_BODY,
    NORMS_AROUND_ATTENTION,
    OPTIONAL_WIDTH,
    PLAIN_FIELDS,
    QK_NORM,
    RMS_NORM_EPSILON,
    SOFTMAX_ROUTER,
    WINDOW,
    attention,
    expert_fields,
    experts,
    mlp,
    router_bias,
    shared_expert,
)
from ascend_gguf.architectures.transforms import as_row
from ascend_gguf.reader import GGUFFile


def _last_moe_layer(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"moe_layer_end_index": attributes["num_hidden_layers"] - 1}


@reads("expert_shared_feed_forward_length")
def _shared_count(file: GGUFFile, attributes: Attributes) -> Attributes:
    # llama.cpp uses their total width; the count may be missing.
    if "moe_num_shared_experts" in attributes:
        return {}
    width = number(file, "expert_shared_feed_forward_length", least=0) or 0
    return {"moe_num_shared_experts": width // attributes["moe_intermediate_size"]}


ERNIE4_5_MOE = Architecture(
    name="ernie4_5-moe",
    model_type="ernie4_5_moe",
    fields=FIELDS
    | HEAD_SIZE
    | expert_fields("moe_num_experts", "moe_k")
    | {
        "expert_shared_count": count("moe_num_shared_experts"),
        "interleave_moe_layer_step": "moe_layer_interval",
        "leading_dense_block_count": count("moe_layer_start_index"),
    },
    defaults={"moe_layer_start_index": 0},
    fixed=SOFTMAX_ROUTER,
    tensors=(
        *NEOX_BODY,
        *DENSE_OR_SPARSE,
        # A row, of which llama-quantize makes a vector.
        per_layer(
            "exp_probs_b.bias",
            "1 experts",
            "mlp.moe_statics.e_score_correction_bias",
            kind="sparse",
            undo=as_row,
            dense=True,
        ),
    ),
    derived=(_last_moe_layer, _shared_count),
)


def _hunyuan_shared(file: GGUFFile, attributes: Attributes) -> Attributes:
    # llama.cpp has their total width only; the engine multiplies a count and a width that nothing
    # else in the model uses.
    width = attributes.get("shared_expert_intermediate_size", attributes["intermediate_size"])
    return {
        "shared_expert_intermediate_size": width,
        "intermediate_size": width,
        "num_shared_expert": 1,
    }


HUNYUAN_MOE = Architecture(
    name="hunyuan-moe",
    model_type="hunyuan_v1_moe",
    fields=FIELDS
    | HEAD_SIZE
    | expert_fields("num_experts", "moe_topk")
    | {"expert_shared_feed_forward_length": length("shared_expert_intermediate_size")},
    fixed=SOFTMAX_ROUTER,
    tensors=(
        *NEOX_BODY,
        *HUNYUAN_QK_NORM,
        *experts(router="gate.wg.weight"),
        *shared_expert("mlp.shared_mlp"),
    ),
    constants={"use_qk_norm": True, "use_mixed_mlp_moe": True},
    derived=(_hunyuan_shared,),
)


def _llama4_sizes(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {
        "shared_expert_intermediate_size": attributes["intermediate_size"],
        # Only Maverick goes without; llama.cpp also recognizes it by its experts.
        "use_qk_norm": attributes["num_local_experts"] != 128,
    }


LLAMA4 = Architecture(
    name="llama4",
    model_type="llama4_text",
    fields=FIELDS
    | HEAD_SIZE
    | expert_fields("num_local_experts", width="intermediate_size")
    | {
        "interleave_moe_layer_step": "interleave_moe_layer_step",
        "feed_forward_length": "intermediate_size_mlp",
    },
    fixed={
        "attention.sliding_window": (8192,),
        "expert_gating_func": (2,),
        "expert_weights_norm": (False,),
    },
    tensors=(
        *NEOX_BODY,
        *mlp("dense", "feed_forward"),
        *experts("feed_forward", router="router.weight", kind="sparse"),
        *shared_expert("feed_forward.shared_expert", kind="sparse"),
    ),
    derived=(_llama4_sizes,),
)

_OLMOE_EXPERTS = {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}

OLMOE = Architecture(
    name="olmoe",
    model_type="olmoe",
    fields=PLAIN_FIELDS | _OLMOE_EXPERTS,
    fixed={RMS_NORM_EPSILON: (1e-5,), "expert_gating_func": (1,), "expert_weights_norm": (False,)},
    tensors=NEOX_BODY + JOINT_QK_NORM + experts(),
    constants={"norm_topk_prob": False},
)

MELLUM = Architecture(
    name="mellum",
    model_type="mellum",
    fields=FIELDS | OPTIONAL_WIDTH | HEAD_SIZE | WINDOW | expert_fields("num_experts"),
    fixed=SOFTMAX_ROUTER,
    tensors=NEOX_BODY + QK_NORM + experts(),
    constants={"norm_topk_prob": True},
    rope=rope.by_layer_type(None),
    derived=(sliding_unless(4),),
)


@reads("attention.sliding_window_pattern")
def _every_fourth(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``layer_types``: every fourth layer attends to everything, and has no rotary embedding."""
    layers = attributes["num_hidden_layers"]
    types = [("full" if layer % 4 == 3 else "sliding") + "_attention" for layer in range(layers)]
    found = sliding_unless(4)(file, attributes)
    if found["sliding_window"] and found["layer_types"] != types:
        raise file.error(
            "SGLang's model has windows where it has a rotary embedding",
            "attention.sliding_window_pattern",
            found=[kind.partition("_")[0] for kind in found["layer_types"]][:8],
            expected="full attention in every fourth layer",
            hint=None,
        )
    return {"layer_types": types, "sliding_window": found["sliding_window"]}


#: Arcee's Trinity.
AFMOE = Architecture(
    name="afmoe",
    model_type="afmoe",
    fields=FIELDS
    | HEAD_SIZE
    | WINDOW
    | expert_fields("num_experts")
    | required({"expert_shared_count": count("num_shared_experts")})
    | {
        "expert_weights_scale": scale("route_scale"),
        "expert_weights_norm": flag("route_norm"),
        "leading_dense_block_count": count("num_dense_layers"),
    },
    defaults={"route_scale": 1.0, "route_norm": False, "num_dense_layers": 0},
    fixed={"expert_gating_func": (2,)},
    tensors=(
        *FRAME,
        per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
        per_layer("post_attention_norm.weight", "hidden", "post_attention_layernorm.weight"),
        per_layer("ffn_norm.weight", "hidden", "pre_mlp_layernorm.weight"),
        per_layer("post_ffw_norm.weight", "hidden", "post_mlp_layernorm.weight"),
        *ATTENTION,
        *QK_NORM,
        per_layer("attn_gate.weight", "q hidden", "self_attn.gate_proj.weight"),
        *mlp("dense"),
        *experts(kind="sparse"),
        *shared_expert("mlp.shared_experts", kind="sparse shared"),
        router_bias("mlp.expert_bias"),
    ),
    constants={"hidden_act": "silu", "mup_enabled": True},
    derived=(_every_fourth,),
)


def _dbrx_parts(file: GGUFFile, attributes: Attributes) -> Attributes:
    """The names of the published configuration, for the sizes known by those of all models."""
    return {
        "d_model": attributes["hidden_size"],
        "n_heads": attributes["num_attention_heads"],
        "n_layers": attributes["num_hidden_layers"],
        "max_seq_len": attributes["max_position_embeddings"],
        "attn_config": {
            "kv_n_heads": attributes["num_key_value_heads"],
            "clip_qkv": attributes.get("clip_qkv"),
        },
        "ffn_config": {
            "ffn_hidden_size": attributes["intermediate_size"],
            "moe_num_experts": attributes["num_local_experts"],
            "moe_top_k": attributes["num_experts_per_tok"],
        },
    }


_DBRX_LAYER = (
    per_layer("attn_norm.weight", "hidden", "norm_attn_norm.norm_1.weight"),
    per_layer("attn_qkv.weight", "q+2*kv hidden", "norm_attn_norm.attn.Wqkv.weight"),
    per_layer("attn_output.weight", "hidden q", "norm_attn_norm.attn.out_proj.weight"),
    per_layer("attn_output_norm.weight", "hidden", "norm_attn_norm.norm_2.weight"),
    *experts("ffn", router="router.layer.weight"),
)

#: Its configuration has parts for attention and for experts.
DBRX = Architecture(
    name="dbrx",
    model_type="dbrx",
    fields=PLAIN_FIELDS
    | {"expert_count": "num_local_experts", "expert_used_count": "num_experts_per_tok"}
    | {"attention.clamp_kqv": scale("clip_qkv")},
    fixed={LAYER_NORM_EPSILON: (1e-5,)} | SOFTMAX_ROUTER,
    tensors=(
        Rename("token_embd.weight", "vocab hidden", "transformer.wte.weight"),
        Rename("output_norm.weight", "hidden", "transformer.norm_f.weight"),
        Rename("output.weight", "vocab hidden", "lm_head.weight"),
        *(
            rule.renamed(lambda name: name.replace("model.layers", "transformer.blocks"))
            for rule in _DBRX_LAYER
        ),
    ),
    constants={"tie_word_embeddings": False},
    derived=(_dbrx_parts,),
)

_EXPERT = "mlp.experts.{expert}"


def _untruncated(file: GGUFFile, attributes: Attributes) -> Attributes:
    # The bounds of the frequencies that YaRN scales are not rounded.
    return rope.parameters(file, attributes) | {"truncate": False}


GPT_OSS = Architecture(
    name="gpt-oss",
    model_type="gpt_oss",
    fields=FIELDS
    | OPTIONAL_WIDTH
    | HEAD_SIZE
    | expert_fields("num_local_experts", width="intermediate_size")
    | required(WINDOW),
    fixed={"expert_gating_func": (3,)},
    tensors=(
        *FRAME,
        *NORMS_AROUND_ATTENTION,
        *attention(biased=True, output_biased=True),
        per_layer("attn_sinks.weight", "heads", "self_attn.sinks"),
        *experts(router="router.weight"),
        per_layer("ffn_gate_inp.bias", "experts", "mlp.router.bias"),
        per_layer("ffn_gate_exps.bias", "experts expert_ffn", f"{_EXPERT}.gate_proj.bias"),
        per_layer("ffn_up_exps.bias", "experts expert_ffn", f"{_EXPERT}.up_proj.bias"),
        per_layer("ffn_down_exps.bias", "experts hidden", f"{_EXPERT}.down_proj.bias"),
    ),
    rope=_untruncated,
    derived=(sliding_unless(2),),
)


def _grok_rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    """YaRN with a bound of its own where the file has none (``load_arch_hparams``)."""
    found = rope.parameters(file, attributes)
    return {"beta_fast": 8.0} | found if found["rope_type"] == "yarn" else found


def _embedding_scale(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``embedding_multiplier_scale``: zero is none."""
    return {"embedding_multiplier_scale": attributes["embedding_multiplier_scale"] or 1.0}


#: Experts beside a dense network, in Grok 2.
GROK = Architecture(
    name="grok",
    model_type="grok",
    causal_lm="Grok1ForCausalLM",
    fields=FIELDS
    | HEAD_SIZE
    | {
        "expert_count": "num_local_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": length("moe_intermediate_size"),
        "embedding_scale": Field("embedding_multiplier_scale", float, 0),
        "logit_scale": Field("output_multiplier_scale", float, 0),
        "attention.output_scale": Field("attn_output_multiplier", float, 0),
        "attention.temperature_length": Field("attn_temperature_len", least=2),
        "attn_logit_softcapping": Field("attn_logit_softcapping", float, 0),
        "router_logit_softcapping": Field("router_logit_softcapping", float, 0),
        "final_logit_softcapping": Field("final_logit_softcapping", float, 0),
    },
    # Those of Grok 1.
    defaults={
        "embedding_multiplier_scale": 78.38367176906169,
        "output_multiplier_scale": 3**-0.5,
        "attn_output_multiplier": 128**-0.5,
        "attn_logit_softcapping": 30.0,
        "router_logit_softcapping": 30.0,
        "final_logit_softcapping": 0.0,
    },
    # xAI's own code divides weights of experts by no sum; llama.cpp does.
    fixed={
        "expert_gating_func": (1,),
        "expert_weights_norm": (False,),
        "hidden_activation": ("gelu", "gelu_pytorch_tanh"),
    },
    tensors=(
        *FRAME,
        per_layer("attn_norm.weight", "hidden", "pre_attn_norm.weight"),
        *attention(),
        per_layer("attn_output_norm.weight", "hidden", "post_attn_norm.weight"),
        per_layer("ffn_norm.weight", "hidden", "pre_moe_norm.weight"),
        *mlp("residual_moe"),
        *experts("block_sparse_moe", ("w1", "w3", "w2")),
        per_layer(
            "post_ffw_norm.weight",
            "hidden",
            "post_moe_norm.weight",
            unless="layer_output_norm.weight",
        ),
        # In files of 2024.
        per_layer("layer_output_norm.weight", "hidden", "post_moe_norm.weight", optional=True),
    ),
    rope=_grok_rope,
    derived=(has_tensor("residual_moe", "blk.0.ffn_up.weight"), _embedding_scale),
)

ARCHITECTURES = (AFMOE, MELLUM, OLMOE, LLAMA4, ERNIE4_5_MOE, HUNYUAN_MOE, DBRX, GPT_OSS, GROK)
