"""The small models of the tests."""

from __future__ import annotations

from functools import partial

from gguf import GGMLQuantizationType as Type

from hf_models.by_layer import TINY as BY_LAYER
from hf_models.conversion import (
    bailing_metadata,
    deepseek,
    deepseek_metadata,
    ernie_metadata,
    gemma2_metadata,
    gemma3_metadata,
    gemma4,
    gemma4_factors,
    gemma4_metadata,
    glm4moe_metadata,
    gpt_oss,
    gpt_oss_metadata,
    granite_metadata,
    granitemoe,
    hunyuan_metadata,
    llama,
    llama3_factors,
    llama4,
    llama4_metadata,
    llama_metadata,
    minimax_metadata,
    partial_rope_metadata,
    phi3_factors,
    phi3_metadata,
    plus_one,
    qwen35,
    qwen35_metadata,
    sections_metadata,
    window_pattern_metadata,
)
from hf_models.dense import DENSE
from hf_models.gated import TINY as GATED
from hf_models.gemma3n import TINY as GEMMA_3N
from hf_models.hybrid import TINY as HYBRID
from hf_models.latent import TINY as LATENT
from hf_models.mixtures import MIXTURES
from hf_models.sizes import DELTA_NET, EXPERTS, GRANITE, PARTIAL, ROPE_BY_LAYER
from hf_models.tiny import Tiny

_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_WINDOW = {"sliding_window": 16, "num_hidden_layers": 4}
_PHI3 = {
    "rope_type": "default",
    "rope_theta": 30000.0,
    "partial_rotary_factor": 1.0,
    "original_max_position_embeddings": 2048,
}
_LONG = {
    "rope_type": "longrope",
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * i for i in range(12)],
    "long_factor": [1.0 + 0.5 * i for i in range(12)],
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 30000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 512,
}
_GPT_OSS_YARN = {
    "rope_type": "yarn",
    "rope_theta": 30000.0,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 512,
}
_LATENT = EXPERTS | {
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "first_k_dense_replace": 1,
    # Ascend's operators take these alone.
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
_MLA_YARN = {
    "rope_type": "yarn",
    "rope_theta": 30000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 512,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
}

_LAST_3 = ("full_attention", "sliding_attention", "full_attention")
_GEMMA4 = {
    "sliding_window": 16,
    "head_dim": 32,
    "global_head_dim": 64,
    "tie_word_embeddings": True,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
        "full_attention": {
            "rope_type": "proportional",
            "rope_theta": 400000.0,
            "partial_rotary_factor": 0.25,
        },
    },
}

_llama = partial(Tiny, convert=llama, metadata=llama_metadata)

#: By the name of a test.
TINY: dict[str, Tiny] = (
    {
        "llama-2": _llama("llama", "llama", {"num_key_value_heads": 4}),
        "llama-3.1": _llama(
            "llama", "llama", {"rope_parameters": _LLAMA3, "head_dim": 64}, extra=llama3_factors
        ),
        "llama-bias": _llama(
            "llama", "llama", {"attention_bias": True, "tie_word_embeddings": True}
        ),
        "mistral": _llama("llama", "mistral", {"head_dim": 64, "sliding_window": None}),
        "mixtral": _llama("llama", "mixtral", {"num_local_experts": 4}),
        "gemma2": Tiny(
            "gemma2",
            "gemma2",
            _WINDOW
            | {"head_dim": 64, "query_pre_attn_scalar": 64, "tie_word_embeddings": True}
            | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 2.0}
            # Not written: no published model has another.
            | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
            gemma2_metadata,
            plus_one,
        ),
        "gemma3": Tiny(
            "gemma3",
            "gemma3_text",
            {"sliding_window": 16, "num_hidden_layers": 6, "head_dim": 64}
            | {
                "query_pre_attn_scalar": 64,
                "tie_word_embeddings": True,
                "rope_parameters": ROPE_BY_LAYER,
            },
            gemma3_metadata,
            plus_one,
        ),
        # As E2B and E4B.
        "gemma4-e2b": Tiny(
            "gemma4",
            "gemma4_text",
            _GEMMA4
            | {"num_hidden_layers": 5, "layer_types": [*["sliding_attention"] * 2, *_LAST_3]}
            | {"num_kv_shared_layers": 2, "use_double_wide_mlp": True}
            | {"hidden_size_per_layer_input": 32, "vocab_size_per_layer_input": 512}
            # With six layers, and without, transformers itself is wrong by 0.010 in float16.
            | {"final_logit_softcapping": 2.0},
            gemma4_metadata,
            gemma4,
            extra=gemma4_factors,
        ),
        # As 26B-A4B, whose attention is 31B's too.
        "gemma4-26b": Tiny(
            "gemma4",
            "gemma4_text",
            _GEMMA4
            | {"num_hidden_layers": 4, "layer_types": ["sliding_attention", "full_attention"] * 2}
            | {"hidden_size_per_layer_input": 0, "final_logit_softcapping": 2.0}
            | {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
            | {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
            | {"moe_intermediate_size": 64},
            gemma4_metadata,
            gemma4,
            extra=gemma4_factors,
        ),
        "phi3": Tiny(
            "phi3", "phi3", {"rope_parameters": _PHI3, "sliding_window": 16}, phi3_metadata
        ),
        "phi4-mini": Tiny(
            "phi3",
            "phi3",
            {"rope_parameters": _PHI3 | _LONG, "max_position_embeddings": 8192},
            phi3_metadata,
            extra=phi3_factors,
        ),
        "granite": Tiny("granite", "granite", GRANITE, granite_metadata, llama),
        "granitemoe": Tiny(
            "granitemoe",
            "granitemoe",
            GRANITE | {"num_local_experts": 4},
            granite_metadata,
            granitemoe,
        ),
        "olmo2": Tiny("olmo2", "olmo2"),
        "olmo3": Tiny(
            "olmo2",
            "olmo3",
            _WINDOW | {"rope_parameters": _YARN},
            window_pattern_metadata,
        ),
        "command-r": Tiny(
            "command-r",
            "cohere",
            {"tie_word_embeddings": True, "logit_scale": 0.5},
            lambda config: {"logit_scale": config.logit_scale, "rope.scaling.type": "none"},
        ),
        "command-r-plus": Tiny(
            "command-r",
            "cohere",
            {"tie_word_embeddings": True, "logit_scale": 0.5, "use_qk_norm": True},
            lambda config: {"logit_scale": config.logit_scale, "rope.scaling.type": "none"},
        ),
        "cohere2": Tiny(
            "cohere2",
            "cohere2",
            _WINDOW
            | {"tie_word_embeddings": True, "logit_scale": 0.5, "head_dim": 32, "rotary_pct": 1.0},
            lambda config: (
                llama_metadata(config)
                | {
                    "logit_scale": config.logit_scale,
                    "attention.sliding_window": config.sliding_window,
                    "rope.scaling.type": "none",
                }
            ),
        ),
        "starcoder2": Tiny("starcoder2", "starcoder2", {"sliding_window": None}),
        "smollm3": _llama("smollm3", "smollm3", {"num_hidden_layers": 4, "no_rope_layers": None}),
        "exaone4": Tiny(
            "exaone4",
            "exaone4",
            _WINDOW | {"head_dim": 32},
            window_pattern_metadata,
        ),
        "exaone4-1.2b": Tiny(
            "exaone4",
            "exaone4",
            {"sliding_window": None, "layer_types": ["full_attention"] * 2, "head_dim": 32},
            lambda config: {"vocab_size": config.vocab_size},
        ),
        "seed-oss": Tiny("seed_oss", "seed_oss", {"head_dim": 32}),
        "glm4": Tiny(
            "glm4", "glm4", {"head_dim": 64, "rope_parameters": PARTIAL}, partial_rope_metadata
        ),
        "glm4moe": Tiny(
            "glm4moe",
            "glm4_moe",
            EXPERTS
            | {"n_routed_experts": 4, "n_shared_experts": 1, "head_dim": 64, "use_qk_norm": True}
            | {"attention_bias": True, "rope_parameters": PARTIAL, "routed_scaling_factor": 1.5},
            glm4moe_metadata,
        ),
        # transformers has no model of it, but what it computes is what GLM-4.5 does.
        "bailingmoe2": Tiny(
            "bailingmoe2",
            "glm4_moe",
            EXPERTS
            | {"n_routed_experts": 16, "n_shared_experts": 1, "head_dim": 64, "use_qk_norm": True}
            | {"n_group": 4, "topk_group": 2, "rope_parameters": PARTIAL}
            | {"routed_scaling_factor": 2.5, "first_k_dense_replace": 1},
            bailing_metadata,
            joined={
                "attention.query_key_value.weight": (
                    "self_attn.q_proj.weight",
                    "self_attn.k_proj.weight",
                    "self_attn.v_proj.weight",
                )
            },
        ),
        "gpt-oss": Tiny(
            "gpt-oss",
            "gpt_oss",
            _WINDOW
            | {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64}
            | {"rope_parameters": _GPT_OSS_YARN},
            gpt_oss_metadata,
            gpt_oss,
            types={"_exps.weight": Type.MXFP4},
        ),
        "llama4": Tiny(
            "llama4",
            "llama4_text",
            {"num_local_experts": 4, "intermediate_size_mlp": 256, "head_dim": 32}
            | {"num_hidden_layers": 4, "interleave_moe_layer_step": 2},
            llama4_metadata,
            llama4,
        ),
        "deepseek-v2-lite": Tiny(
            "deepseek2",
            "deepseek_v2",
            _LATENT | {"q_lora_rank": None, "n_shared_experts": 2, "rope_parameters": _MLA_YARN},
            deepseek_metadata,
            deepseek,
            npu_dtype="bfloat16",
        ),
        "deepseek-v3": Tiny(
            "deepseek2",
            "deepseek_v3",
            _LATENT
            | {"q_lora_rank": 32, "n_shared_experts": 1, "n_group": 2, "topk_group": 1}
            | {"routed_scaling_factor": 2.5, "rope_parameters": _MLA_YARN},
            deepseek_metadata,
            deepseek,
            types={"attn_q_a.weight": Type.Q4_1},
            npu_dtype="bfloat16",
        ),
        "minimax-m2": Tiny(
            "minimax-m2",
            "minimax_m2",
            {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "rotary_dim": 16},
            minimax_metadata,
        ),
        "ernie4.5-moe": Tiny(
            "ernie4_5-moe",
            "ernie4_5_moe",
            {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 64},
            ernie_metadata,
            # As llama.cpp's quantization leaves it; conversion has a row.
            lambda name, tensor, config: [(name, tensor.squeeze(0))],
        ),
        "hunyuan-moe": Tiny(
            "hunyuan-moe",
            "hunyuan_v1_moe",
            # A single expert's weight is one.
            {"num_experts": 4, "moe_topk": [1, 1], "head_dim": 32, "num_shared_expert": [1, 1]}
            | {"moe_intermediate_size": [192, 192]},
            hunyuan_metadata,
        ),
        "hunyuan-dense": Tiny("hunyuan-dense", "hunyuan_v1_dense", {"head_dim": 64}),
        # Their text, which is that of these models.
        "hunyuan-vl": Tiny(
            "hunyuan_vl",
            "hunyuan_v1_dense",
            {"head_dim": 64},
            lambda config: {"rope.dimension_sections": [16, 16, 16, 16]},
            twin=True,
        ),
        "qwen2-vl": Tiny("qwen2vl", "qwen2", metadata=sections_metadata, twin=True),
        "qwen3-vl": Tiny("qwen3vl", "qwen3", {"head_dim": 64}, sections_metadata, twin=True),
        "qwen3-vl-moe": Tiny(
            "qwen3vlmoe",
            "qwen3_moe",
            EXPERTS | {"num_experts": 4, "head_dim": 64, "norm_topk_prob": True},
            sections_metadata,
            twin=True,
        ),
        # Two value heads for a key head.
        "qwen3.5": Tiny(
            "qwen35",
            "qwen3_5_text",
            DELTA_NET
            | {"linear_num_key_heads": 4, "linear_num_value_heads": 8, "linear_conv_kernel_dim": 3}
            | {"tie_word_embeddings": True},
            qwen35_metadata,
            qwen35,
        ),
        "qwen3.5-moe": Tiny(
            "qwen35moe",
            "qwen3_5_moe_text",
            DELTA_NET
            | EXPERTS
            | {"linear_num_key_heads": 4, "linear_num_value_heads": 4, "num_experts": 4}
            | {"shared_expert_intermediate_size": 96}
            # Through more layers float16 moves routers enough, transformers' own as well, to choose
            # other experts.
            | {"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
            qwen35_metadata,
            qwen35,
        ),
    }
    | BY_LAYER
    | GEMMA_3N
    | GATED
    | LATENT
    | HYBRID
    | DENSE
    | MIXTURES
)

#: Models that the engine runs on one stage of a pipeline only.
ONE_STAGE = frozenset(
    (
        "gemma2",
        "gemma3",
        "gemma3n",
        "gemma4-e2b",
        "gemma4-26b",
        "granite",
        "granitemoe",
        "olmo2",
        "olmo3",
    )
    + ("command-r", "command-r-plus", "cohere2", "starcoder2")
    + ("granitemoe-shared", "gemma", "phi2", "phimoe", "gpt2", "starcoder", "olmoe", "dbrx")
    + ("granite-swa", "granite-swa-moe")
    + ("cohere2moe", "lfm2", "lfm2-moe", "granite-4", "granite-4-dense", "falcon-h1", "mamba2")
    + ("minicpm", "minicpm4", "stablelm", "orion", "olmo", "ernie4.5")
    + (
        "llama4",
        "ernie4.5-moe",
        "hunyuan-dense",
        "hunyuan-moe",
        "hunyuan-vl",
        "trinity",
        "step-3.5",
        "mimo-v2-flash",
        "minicpm3",
        "minicpm3-long",
        "muse-glimmer",
        "nanbeige",
        "grok-1",
        "grok-2",
        "hunyuan-4",
    )
)
