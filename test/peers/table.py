"""Every architecture of the tests, as it is and with q, k and v as one tensor, and rows of our own.

A file says what the converter makes of a configuration: a row is a kind of model and its sizes.
"""

from __future__ import annotations

from dataclasses import replace

from hf_models import TINY
from peers.peer import EXPERTS, PIXTRAL, VISION, Peer, rope, sections
from peers.published import PUBLISHED
from peers.siblings import SIBLINGS

_LINEAR = {"rope_type": "linear", "factor": 4.0}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 256,
}
_TEMPERED = {"mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.1}
#: As Phi-3.5-MoE; the converter has the scale of sines: sqrt(1 + ln 4 / ln 2048).
_PHIMOE = {
    "rope_type": "longrope",
    "rope_theta": 30000.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": 2048,
    "short_mscale": 1.0871146,
    "long_mscale": 1.0871146,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [1.0 + 0.5 * i for i in range(16)],
}
_LATENT = {
    "moe_intermediate_size": 64,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 4,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "scoring_func": "sigmoid",
    "n_group": 2,
    "topk_group": 1,
}
_ONE_GROUP = {"n_group": 1, "topk_group": 1}
_MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
_GRANITE = TINY["granite"].sizes

#: Which the other tests write by themselves (:mod:`random_model`).
_QWEN = {
    "qwen2": Peer("qwen2"),
    "qwen2moe": Peer("qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 96}),
    "qwen3": Peer("qwen3", {"head_dim": 64}),
    "qwen3moe": Peer("qwen3_moe", EXPERTS | {"head_dim": 64, "norm_topk_prob": True}),
}

_deepseek = Peer("deepseek_v3", npu_dtype="bfloat16")

#: The models whose text the rows of :data:`hf_models.TINY` with these names are.
_OF_PICTURES = {
    "qwen2-vl": Peer("qwen2_vl", sections(4, 6, 6), VISION | {"hidden_size": 128}),
    "qwen2.5-vl": Peer(
        "qwen2_5_vl",
        {"tie_word_embeddings": True} | sections(4, 6, 6),
        VISION | {"out_hidden_size": 128},
    ),
    "muse-glimmer": Peer(
        "muse_glimmer",
        TINY["muse-glimmer"].sizes,
        VISION | {"num_hidden_layers": 1, "num_attention_heads": 2},
    ),
    "qwen3-vl": Peer(
        "qwen3_vl",
        {"head_dim": 64} | sections(12, 10, 10),
        VISION | {"out_hidden_size": 128, "deepstack_visual_indexes": [0]},
    ),
    "qwen3-vl-moe": Peer(
        "qwen3_vl_moe",
        EXPERTS | {"moe_intermediate_size": 96, "head_dim": 64} | sections(12, 10, 10),
        VISION | {"out_hidden_size": 128, "deepstack_visual_indexes": [0]},
        transposed=("experts.gate_up_proj", "experts.down_proj"),
    ),
}

#: What went wrong once, and its kind: scaling that the engine's class does not read, a factor
#: without a type, files without expert groups, heads of other sizes, fused tensors, biases.
ROWS: dict[str, Peer] = {
    # transformers computes no YaRN for a Mixtral whose configuration does not say the size of a
    # head: its file is one that lacks the keys.
    "mixtral-yarn": Peer(
        "mixtral",
        _MIXTRAL | {"head_dim": 32} | rope(**_YARN),
        drop=("attention.key_length", "attention.value_length"),
    ),
    "mixtral-linear": Peer("mixtral", _MIXTRAL | {"head_dim": 32} | rope(**_LINEAR)),
    "mixtral-wide-heads": Peer("mixtral", _MIXTRAL | {"head_dim": 64} | rope()),
    "mixtral-base": Peer("mixtral", _MIXTRAL | {"head_dim": 32} | rope(3.5)),
    "starcoder2-linear": Peer(
        "starcoder2", {"sliding_window": None, "use_bias": False} | rope(**_LINEAR)
    ),
    "starcoder2-yarn": Peer("starcoder2", {"sliding_window": None} | rope(**_YARN)),
    "granitemoe-yarn": Peer("granitemoe", TINY["granitemoe"].sizes | rope(**_YARN)),
    "granitemoe-linear": Peer("granitemoe", TINY["granitemoe"].sizes | rope(**_LINEAR)),
    # The converter writes nothing of Gemma 2's rotary embedding.
    "gemma2-linear": Peer(
        "gemma2",
        TINY["gemma2"].sizes
        | {"attn_logit_softcapping": 30.0, "final_logit_softcapping": 15.0}
        | rope(10000.0, **_LINEAR),
        add={"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama-linear": Peer("llama", rope(**_LINEAR)),
    "llama-yarn": Peer("llama", rope(**_YARN)),
    "llama-typeless": Peer("llama", rope(**_LINEAR), drop=("rope.scaling.type",)),
    "qwen2-yarn": Peer("qwen2", rope(**_YARN)),
    "qwen3moe-yarn": Peer("qwen3_moe", _QWEN["qwen3moe"].sizes | rope(**_YARN)),
    "deepseek-groupless": replace(
        _deepseek,
        sizes=_LATENT
        | _ONE_GROUP
        | {"n_routed_experts": 32, "num_experts_per_tok": 4}
        | rope(**_YARN),
        drop=("expert_group_count", "expert_group_used_count"),
    ),
    "deepseek-plain-rope": replace(_deepseek, sizes=_LATENT | rope()),
    "deepseek-linear": replace(_deepseek, sizes=_LATENT | rope(**_LINEAR)),
    "glm-4.7-flash-heads": replace(
        _deepseek,
        sizes=_LATENT | _ONE_GROUP | {"qk_nope_head_dim": 192, "v_head_dim": 256} | rope(),
    ),
    "moonlight": replace(_deepseek, sizes=_LATENT | _ONE_GROUP | {"q_lora_rank": None} | rope()),
    "glm-4.7-flash": Peer(
        "glm4_moe_lite",
        _LATENT
        | _ONE_GROUP
        | {"qk_nope_head_dim": 192, "v_head_dim": 256, "num_nextn_predict_layers": 1}
        # transformers has no other for norms of latents.
        | {"rms_norm_eps": 1e-6}
        | rope(),
        npu_dtype="bfloat16",
    ),
    "llama-bias": Peer("llama", {"attention_bias": True} | rope(), fuse_qkv=True),
    # No kernel of Ascend turns heads of 80.
    "llama-mlp-bias": Peer("llama", {"mlp_bias": True, "head_dim": 80} | rope()),
    "granite-mlp-bias": Peer("granite", _GRANITE | {"mlp_bias": True} | rope()),
    "exaone-3.5": Peer(
        "llama", {"head_dim": 32, "rope_parameters": TINY["llama-3.1"].sizes["rope_parameters"]}
    ),
    # The converter asks for LongRoPE, as published.
    "phimoe": Peer(
        "phimoe",
        TINY["phimoe"].sizes | {"max_position_embeddings": 8192, "rope_parameters": _PHIMOE},
    ),
    "gpt2-output": Peer("gpt2", TINY["gpt2"].sizes | {"tie_word_embeddings": False}),
    # Which conversion multiplies weights by, and a norm of what leaves the state.
    "falcon-h1-multipliers": Peer(
        "falcon_h1",
        TINY["falcon-h1"].sizes
        | {"tie_word_embeddings": False, "mamba_n_groups": 2, "mamba_rms_norm": True}
        | {"mamba_norm_before_gate": False, "key_multiplier": 0.5, "embedding_multiplier": 4.0}
        | {"mlp_multipliers": [0.5, 2.0], "ssm_multipliers": [0.5, 2.0, 0.5, 2.0, 0.25]}
        | {"attention_in_multiplier": 2.0, "attention_out_multiplier": 0.5}
        | {"ssm_in_multiplier": 2.0, "ssm_out_multiplier": 0.5, "lm_head_multiplier": 0.5},
    ),
    "kimi-linear-fused": Peer(
        "kimi_linear", TINY["kimi-linear"].sizes, fuse_qkv=True, npu_dtype="bfloat16"
    ),
    # One shared expert, no dense layer, and as many heads of the indexer as queries have groups.
    "minimax-m3-all-sparse": Peer(
        "minimax_m3_vl_text",
        TINY["minimax-m3"].sizes
        | {"mlp_layer_types": ["sparse"] * 2, "layer_types": ["minimax_m3_sparse"] * 2}
        | {"shared_intermediate_size": 64, "head_dim": 48, "rotary_dim": 24}
        | {"num_key_value_heads": 4, "index_n_heads": 4, "rms_norm_eps": 1e-5},
    ),
    # No dense layer, no clamp, scaled RoPE, streams as published, and heads of other sizes.
    "hunyuan-4-unclamped": Peer(
        "hy_v4",
        TINY["hunyuan-4"].sizes
        | {"mlp_layer_types": ["sparse"] * 3, "first_k_dense_replace": 0, "norm_topk_prob": False}
        | {"kv_lora_rank": 64, "qk_rope_head_dim": 32, "qk_nope_head_dim": 32, "v_head_dim": 48}
        # transformers clamps to zero where the number is zero.
        | {"hc_mult": 4, "hc_magnitude": 2.0, "hc_eps": 1e-6, "swiglu_limit": 1e4}
        | rope(**_YARN),
        drop=("swiglu_clamp_exp",),
        npu_dtype="bfloat16",
    ),
    "granite-bias": Peer("granite", _GRANITE | {"attention_bias": True} | rope()),
}


def _of_architectures() -> dict[str, Peer]:
    """Each of :data:`hf_models.TINY`, and with whatever the converter can fuse."""
    plain = _QWEN | {
        name: Peer(
            tiny.model_type, tiny.sizes, npu_dtype=tiny.npu_dtype, refused=tuple(tiny.refused)
        )
        for name, tiny in TINY.items()
        # transformers has no model of the first: there is nothing to convert.  The converter of
        # the second calls itself without end (``BaichuanModel.modify_tensors``).
        if tiny.arch not in ("bailingmoe2", "baichuan")
    }
    # The converter wants to be told, transformers' models do not.
    for name in ("deepseek-v3", "deepseek-v3.2", "glm-5", "dots1", "exaone-moe"):
        sizes = {**TINY[name].sizes, "scoring_func": "sigmoid"}
        plain[name] = replace(plain[name], sizes=sizes)
    # The converter writes one, whatever the configuration says.
    for name in ("deepseek-moe", "ling-unnormalized"):
        plain[name] = replace(plain[name], sizes={**TINY[name].sizes, "routed_scaling_factor": 1.0})
    # Which published configurations say, and transformers takes for granted.
    plain["trinity"] = replace(
        plain["trinity"], sizes={**TINY["trinity"].sizes, "route_norm": True}
    )
    # By which the converter knows layers without a rotary embedding.
    for name in ("granite-swa", "granite-swa-moe"):
        sizes = {**TINY[name].sizes, "no_rope_layers": [1, 0, 1, 1]}
        plain[name] = replace(plain[name], sizes=sizes)
    plain |= _OF_PICTURES
    # The converter writes every fourth layer.
    sizes = {**TINY["qwen3.5-moe"].sizes, "num_hidden_layers": 4, "layer_types": None}
    plain["qwen3.5-moe"] = replace(plain["qwen3.5-moe"], sizes=sizes)
    plain["mistral-4"] = replace(
        plain["mistral-4"],
        model_type="mistral3",
        # The converter writes nothing of the temperature, which is one within this context.
        sizes={"model_type": "mistral4"} | TINY["mistral-4"].sizes | rope(**_YARN, **_TEMPERED),
        vision=PIXTRAL,
    )
    fused = {
        f"{name}-fused": replace(peer, fuse_qkv=True)
        for name, peer in plain.items()
        if peer.model_type not in ("deepseek_v2", "deepseek_v3", "mistral3", "phi3", "minicpm3")
        and not peer.model_type.startswith(("deepseek_v", "glm_moe_dsa"))
        and name not in PUBLISHED
    }
    return plain | fused


PEERS: dict[str, Peer] = _of_architectures() | ROWS | SIBLINGS

_EMBEDDING_GEMMA = TINY["gemma3"].sizes | {"use_bidirectional_attention": True}

#: Positions begin after that of padding.
_ROBERTA = {"type_vocab_size": 1, "layer_norm_eps": 1e-5, "pad_token_id": 1}

#: Their heads are rows of the output matrix, or of the embedding.
RERANKERS = {
    "qwen3-reranker": Peer("qwen3", {"head_dim": 64}, reranker=True),
    "qwen3-vl-reranker-tied": replace(
        _OF_PICTURES["qwen3-vl"],
        sizes=_OF_PICTURES["qwen3-vl"].sizes | {"tie_word_embeddings": True},
        reranker=True,
    ),
}

#: Of a pair of texts; by XLM-RoBERTa's head.
CROSS_ENCODERS = {
    "bge-reranker": Peer("xlm-roberta", _ROBERTA | {"id2label": {0: "LABEL_0"}}, reranker=True),
}

#: Models that give embeddings and no text, by architecture.
ENCODERS = {
    "bert": {
        "bert": Peer("bert", {"layer_norm_eps": 1e-12}, pooling="cls_token"),
        "bert-mean": Peer("bert", {"type_vocab_size": 1}, pooling="mean_tokens"),
        "distilbert": Peer(
            "distilbert",
            {"dim": 128, "hidden_dim": 192, "n_layers": 2, "n_heads": 4},
            pooling="mean_tokens",
        ),
        "bge-m3": Peer("xlm-roberta", _ROBERTA, pooling="cls_token"),
        "bert-fused": Peer("bert", {"layer_norm_eps": 1e-12}, pooling="cls_token", fuse_qkv=True),
        "roberta": Peer("roberta", _ROBERTA, pooling="mean_tokens"),
    },
    "gemma-embedding": {
        "embedding-gemma": Peer("gemma3_text", _EMBEDDING_GEMMA, pooling="mean_tokens", dense=96),
        "embedding-gemma-alone": Peer("gemma3_text", _EMBEDDING_GEMMA, pooling="mean_tokens"),
    },
    "llama-embed": {"llama-embed": Peer("llama", pooling="mean_tokens")},
}

#: Models that draft for themselves.
_QWEN_DRAFTS = {
    **{"num_hidden_layers": 4, "head_dim": 128, "linear_conv_kernel_dim": 4},
    **{"linear_value_head_dim": 32},
    **{"layer_types": ["linear_attention", "full_attention"] * 2, "full_attention_interval": 2},
}
DRAFTING = {
    "glm4moe-drafts": Peer(
        "glm4_moe", TINY["glm4moe"].sizes | {"num_hidden_layers": 3, "head_dim": 128}, drafts=True
    ),
    **{
        f"{name}-drafts": replace(
            peer, sizes=peer.sizes | {"num_hidden_layers": 3}, npu_dtype="bfloat16", drafts=True
        )
        for name, peer in PEERS.items()
        if name in ("glm-4.7-flash", "deepseek-v3.2", "glm-5")
    },
    "qwen3.5-drafts": Peer("qwen3_5_text", TINY["qwen3.5"].sizes | _QWEN_DRAFTS, drafts=True),
    "qwen3.5-moe-drafts": Peer(
        "qwen3_5_moe_text", TINY["qwen3.5-moe"].sizes | _QWEN_DRAFTS, drafts=True
    ),
    "qwen3-next-drafts": Peer(
        "qwen3_next",
        TINY["qwen3-next"].sizes | _QWEN_DRAFTS | {"tie_word_embeddings": True},
        drafts=True,
    ),
}

EVERY = PEERS | RERANKERS | CROSS_ENCODERS | DRAFTING
EVERY |= {name: p for models in ENCODERS.values() for name, p in models.items()}

#: A part for every run of the tests: each kind once.
CHOSEN = (
    "mixtral-yarn",
    "mixtral-wide-heads",
    "starcoder2-linear",
    "granitemoe-yarn",
    "gemma2-linear",
    "llama-typeless",
    "deepseek-groupless",
    "deepseek-plain-rope",
    "glm-4.7-flash-heads",
    "qwen3-fused",
    "granite-fused",
    "gpt-oss-fused",
    "llama-bias",
    "llama-mlp-bias",
    "hunyuan-dense",
    "qwen3-vl-moe",
    "internlm2",
    "qwen",
    "chatglm",
    "qwen3.5",
    "qwen3.5-moe-fused",
    "qwen3-next",
    "gemma3n",
    "gemma4-e2b",
    "gemma4-26b",
    "nemotron-super",
    "step-3.5",
    "laguna-xs",
    "lfm2",
    "lfm2-moe-unbiased",
    "granite-4",
    "nemotron-h-moe",
    "falcon-h1-multipliers",
    "falcon-h1-bias",
    "glm-4.1v",
    "youtu",
    "deepseek-moe",
    "ling",
    "trinity",
    "kimi-linear",
    "kimi-linear-fused",
)
