"""Sizes that several small models share."""

GRANITE = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 0.5,
}
EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
PARTIAL = {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.5}
ROPE_BY_LAYER = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 20000.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 400000.0, "factor": 8.0},
}
DELTA_NET = {
    "num_hidden_layers": 4,
    "head_dim": 64,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "rope_parameters": PARTIAL,
}
