"""Other classes whose files have the architectures of the tests, and biases that few have."""

from __future__ import annotations

from typing import Any

from hf_models import TINY
from peers.peer import EXPERTS, PIXTRAL, VISION, Peer, rope

_SIGLIP = {**PIXTRAL, "model_type": "siglip_vision_model"}
_GLM_VISION = VISION | {"out_hidden_size": 128}


def _glm_sections(partial: float, *sections: int) -> dict[str, Any]:
    return {"head_dim": 32} | rope(partial_rotary_factor=partial, mrope_section=list(sections))


_YOUTU = {
    "num_key_value_heads": 4,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16,
    "v_head_dim": 32,
}
_ALL_BIASED = {"attention_bias": True, "mlp_bias": True}
_ALL_ATTEND = {"num_hidden_layers": 2, "layer_types": ["full_attention"] * 2}

SIBLINGS: dict[str, Peer] = {
    "mistral-small-3": Peer("mistral3", {"model_type": "mistral", "head_dim": 64}, PIXTRAL),
    "gemma3-vl": Peer("gemma3", TINY["gemma3"].sizes, _SIGLIP),
    "qwen3.5-vl": Peer(
        "qwen3_5",
        TINY["qwen3.5"].sizes,
        VISION | {"out_hidden_size": 128, "deepstack_visual_indexes": []},
    ),
    "llama4-vl": Peer("llama4", TINY["llama4"].sizes, _SIGLIP | {"model_type": "llama4_vision"}),
    "exaone-4.5": Peer(
        "exaone4_5",
        {"model_type": "exaone4"} | TINY["exaone4"].sizes,
        VISION | {"out_hidden_size": 128},
    ),
    "glm-4.1v": Peer("glm4v", _glm_sections(0.5, 2, 3, 3), _GLM_VISION),
    "glm-4.5v": Peer(
        "glm4v_moe",
        {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "first_k_dense_replace": 1}
        | {"attention_bias": True}
        | _glm_sections(0.5, 2, 3, 3),
        _GLM_VISION,
    ),
    "glm-ocr": Peer(
        "glm_ocr", {"num_nextn_predict_layers": 1} | _glm_sections(1.0, 4, 6, 6), _GLM_VISION
    ),
    "solar-open": Peer(
        "solar_open",
        {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "head_dim": 32}
        | rope(partial_rotary_factor=1.0),
    ),
    "youtu": Peer("youtu", _YOUTU | {"q_lora_rank": 32}),
    "youtu-whole-queries": Peer("youtu", _YOUTU | {"q_lora_rank": None}),
    "granite-4-micro": Peer(
        "granitemoehybrid",
        TINY["granite-4-dense"].sizes | _ALL_ATTEND | {"position_embedding_type": "rope"},
    ),
    "granite-4-bias": Peer("granitemoehybrid", TINY["granite-4"].sizes | {"attention_bias": True}),
    # One projection of its Mamba-2, and both.
    "falcon-h1-bias": Peer(
        "falcon_h1", TINY["falcon-h1"].sizes | _ALL_BIASED | {"projectors_bias": True}
    ),
    "nemotron-h-bias": Peer(
        "nemotron_h", TINY["nemotron-h"].sizes | _ALL_BIASED | {"use_bias": True}
    ),
    "lfm2-moe-unbiased": Peer("lfm2_moe", TINY["lfm2-moe"].sizes | {"use_expert_bias": False}),
    "apertus-bias": Peer("apertus", TINY["apertus"].sizes | _ALL_BIASED),
    "hunyuan-moe-two": Peer("hunyuan_v1_moe", TINY["hunyuan-moe"].sizes | {"moe_topk": [2, 2]}),
    "hunyuan-bias": Peer("hunyuan_v1_dense", {"head_dim": 32} | _ALL_BIASED),
    "qwen3-bias": Peer("qwen3", {"head_dim": 64, "attention_bias": True}),
    "qwen2moe-unbiased": Peer(
        "qwen2_moe", EXPERTS | {"shared_expert_intermediate_size": 96, "qkv_bias": False}
    ),
    "gemma3-bias": Peer("gemma3_text", TINY["gemma3"].sizes | {"attention_bias": True}),
    "cohere-bias": Peer("cohere", TINY["command-r"].sizes | {"attention_bias": True}),
    "ernie-bias": Peer("ernie4_5", {"head_dim": 32, "use_bias": True}),
}
