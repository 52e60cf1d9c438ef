"""Sizes that several small models share."""

GRANITE = {
    "attention_multiplier": 0.1,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 0.5,
}
EXPERTS = {"moe_intermediate_size": 64, "num_experts_per_tok": 2}
PARTIAL = {"rope_type": "default", "rope_theta": 30000.0, "partial_rotary_factor": 0.5}
