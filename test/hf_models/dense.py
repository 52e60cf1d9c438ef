"""Small models that are alike: variants of Llama, those with LayerNorm, and a few mixtures."""

from __future__ import annotations

from functools import partial

from hf_models.conversion import (
    granite_metadata,
    granitemoe,
    llama,
    llama_metadata,
    phi3_factors,
    plus_one,
)
from hf_models.dense_conversion import (
    apertus,
    apertus_numbers,
    chatglm_metadata,
    cohere2_moe_metadata,
    dbrx,
    dbrx_metadata,
    dots_metadata,
    exaone_moe_metadata,
    gpt2,
    gpt_metadata,
    hy_v3_metadata,
    mellum_metadata,
    minicpm_metadata,
    olmo_metadata,
    phi2_metadata,
    qwen_metadata,
    stablelm_metadata,
)
from hf_models.sizes import EXPERTS, GRANITE, PARTIAL
from hf_models.tiny import Tiny

_MINICPM_LONG = {
    "rope_type": "longrope",
    "rope_theta": 30000.0,
    "original_max_position_embeddings": 2048,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [1.0 + 0.5 * i for i in range(16)],
}

_MELLUM_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    "full_attention": {
        "rope_type": "yarn",
        "rope_theta": 400000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "original_max_position_embeddings": 512,
    },
}

_GPT = {"tie_word_embeddings": True, "intermediate_size": 512, "rope_parameters": None}

_llama = partial(Tiny, convert=llama, metadata=llama_metadata)

DENSE: dict[str, Tiny] = {
    "nanbeige": Tiny(
        "nanbeige",
        "looped_llama",
        {"num_loops": 3, "skip_loop_final_norm": False, "head_dim": 64},
        lambda config: (
            llama_metadata(config)
            | {
                "num_loops": config.num_loops,
                "skip_loop_final_norm": config.skip_loop_final_norm,
            }
        ),
        llama,
        names="llama",
    ),
    "internlm2": _llama("internlm2", "llama", twin=True),
    "xverse": _llama("xverse", "llama", {"num_key_value_heads": 4}, twin=True),
    "baichuan": _llama("baichuan", "llama", {"num_key_value_heads": 4}, twin=True),
    # Rows of queries and keys stay as they are.
    "exaone": Tiny("exaone", "llama", {"head_dim": 32}, llama_metadata, twin=True),
    # Its text, which has the sections of a vision model's rotary embedding.
    "paddleocr": Tiny(
        "paddleocr",
        "llama",
        {"head_dim": 32},
        lambda config: {"rope.dimension_sections": [4, 6, 6, 0]},
        twin=True,
    ),
    "chatglm": Tiny(
        "chatglm",
        "glm",
        # Its converter writes these numbers whatever the configuration says.
        {"head_dim": 32, "rms_norm_eps": 1e-5, "attention_bias": True}
        | {"rope_parameters": PARTIAL | {"rope_theta": 10000.0}},
        chatglm_metadata,
        twin=True,
    ),
    "qwen": Tiny(
        "qwen",
        "qwen2",
        {"num_key_value_heads": 4},
        qwen_metadata,
        joined={
            f"self_attn.qkv_proj.{kind}": tuple(f"self_attn.{part}_proj.{kind}" for part in "qkv")
            for kind in ("weight", "bias")
        },
        twin=True,
    ),
    "minicpm": Tiny(
        "minicpm",
        "granite",
        GRANITE | {"attention_multiplier": 32**-0.5},
        minicpm_metadata,
        llama,
        twin=True,
    ),
    "minicpm4": Tiny(
        "minicpm",
        "granite",
        GRANITE | {"attention_multiplier": 32**-0.5, "rope_parameters": _MINICPM_LONG},
        minicpm_metadata,
        llama,
        extra=phi3_factors,
        twin=True,
    ),
    "arcee": _llama("arcee", "arcee", {"head_dim": 64}, twin=True),
    "ernie4.5": Tiny("ernie4_5", "ernie4_5", {"head_dim": 32}, twin=True),
    "apertus": Tiny(
        "apertus", "apertus", {"head_dim": 32}, convert=apertus, numbers=apertus_numbers
    ),
    "stablelm": Tiny(
        "stablelm",
        "stablelm",
        {"use_qkv_bias": True, "rope_parameters": PARTIAL | {"rope_theta": 10000.0}},
        stablelm_metadata,
        twin=True,
    ),
    "orion": Tiny(
        "orion",
        "stablelm",
        {"rope_parameters": PARTIAL | {"partial_rotary_factor": 1.0, "rope_theta": 10000.0}},
        lambda config: {"rope.freq_base": None},
        twin=True,
    ),
    "olmo": Tiny(
        "olmo", "olmo", {"num_key_value_heads": 4, "clip_qkv": 1.5}, olmo_metadata, llama, twin=True
    ),
    "phi2": Tiny(
        "phi2",
        "phi",
        {"num_key_value_heads": 4, "intermediate_size": 512}
        | {"rope_parameters": PARTIAL | {"rope_theta": 10000.0}},
        phi2_metadata,
        twin=True,
    ),
    "gpt2": Tiny("gpt2", "gpt2", _GPT | {"num_key_value_heads": 4}, gpt_metadata, gpt2),
    # No twin of another, but ranks on the CPU cannot share its one key head.
    "starcoder": Tiny(
        "starcoder", "gpt_bigcode", _GPT | {"num_key_value_heads": 1}, gpt_metadata, twin=True
    ),
    "gemma": Tiny(
        "gemma",
        "gemma",
        {"head_dim": 64, "tie_word_embeddings": True}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        lambda config: {"rope.freq_base": None},
        plus_one,
        twin=True,
    ),
    "olmoe": Tiny(
        "olmoe",
        "olmoe",
        {"num_experts": 4, "num_experts_per_tok": 2},
    ),
    "phimoe": Tiny(
        "phimoe",
        "phimoe",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "lm_head_bias": True}
        | {"attention_bias": True},
    ),
    "dbrx": Tiny(
        "dbrx",
        "dbrx",
        {"d_model": 128, "intermediate_size": 96}
        | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 1.5, "rope_theta": 30000.0}}
        | {"ffn_config": {"ffn_hidden_size": 96, "moe_num_experts": 4, "moe_top_k": 2}},
        dbrx_metadata,
        dbrx,
    ),
    "dots1": Tiny(
        "dots1",
        "dots1",
        EXPERTS
        | {"n_routed_experts": 4, "n_shared_experts": 2, "head_dim": 32, "norm_topk_prob": True}
        | {"routed_scaling_factor": 2.5, "first_k_dense_replace": 1},
        dots_metadata,
        twin=True,
    ),
    "hy-v3": Tiny(
        "hy_v3",
        "hy_v3",
        EXPERTS
        | {"num_experts": 4, "num_shared_experts": 1, "head_dim": 32}
        | {"router_scaling_factor": 2.5},
        hy_v3_metadata,
        names="dots1",
        twin=True,
    ),
    "exaone-moe": Tiny(
        "exaone-moe",
        "exaone_moe",
        EXPERTS
        | {"num_experts": 4, "num_shared_experts": 1, "head_dim": 32}
        | {"sliding_window": 16, "num_hidden_layers": 4, "routed_scaling_factor": 1.25},
        exaone_moe_metadata,
    ),
    "mellum": Tiny(
        "mellum",
        "mellum",
        EXPERTS
        | {"num_experts": 4, "head_dim": 32, "sliding_window": 16, "num_hidden_layers": 4}
        | {"layer_types": ["sliding_attention", "full_attention"] * 2}
        | {"rope_parameters": _MELLUM_ROPE},
        mellum_metadata,
        names="qwen3moe",
        twin=True,
    ),
    "cohere2moe": Tiny(
        "cohere2moe",
        "cohere2_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1, "head_dim": 32}
        | {"prefix_dense_intermediate_size": 96, "sliding_window": 16, "num_hidden_layers": 4}
        | {"layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"]}
        | {"mlp_layer_types": ["dense", *["sparse"] * 3], "expert_selection_fn": "sigmoid"}
        | {"tie_word_embeddings": True, "logit_scale": 0.5},
        cohere2_moe_metadata,
        names="dots1",
        twin=True,
    ),
    "granitemoe-shared": Tiny(
        "granitemoe",
        "granitemoeshared",
        GRANITE | {"num_local_experts": 4, "shared_intermediate_size": 96},
        lambda config: (
            granite_metadata(config)
            | {"expert_shared_feed_forward_length": config.shared_intermediate_size}
        ),
        granitemoe,
        twin=True,
    ),
}
