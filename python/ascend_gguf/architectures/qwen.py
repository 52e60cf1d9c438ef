"""Qwen2, Qwen3 and their mixtures of experts."""

from __future__ import annotations

from ascend_gguf.architectures.base import Architecture, Rename, per_layer

_FIELDS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_REQUIRED = frozenset(_FIELDS) - {"attention.head_count_kv"}

_HEAD_SIZE = {"attention.key_length": "head_dim"}

_MOE_FIELDS = {
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
}
_MOE_REQUIRED = _REQUIRED - {"feed_forward_length"} | frozenset(_MOE_FIELDS)

_SHARED_FIELDS = {"expert_shared_feed_forward_length": "shared_expert_intermediate_size"}

_FRAME = (
    Rename("token_embd.weight", "vocab hidden", "model.embed_tokens.weight"),
    Rename("output_norm.weight", "hidden", "model.norm.weight"),
    # Absent where the output shares the embedding's matrix.
    Rename("output.weight", "vocab hidden", "lm_head.weight", optional=True),
    per_layer("attn_norm.weight", "hidden", "input_layernorm.weight"),
    per_layer("ffn_norm.weight", "hidden", "post_attention_layernorm.weight"),
    per_layer("attn_q.weight", "q hidden", "self_attn.q_proj.weight"),
    per_layer("attn_k.weight", "kv hidden", "self_attn.k_proj.weight"),
    per_layer("attn_v.weight", "kv hidden", "self_attn.v_proj.weight"),
    per_layer("attn_output.weight", "hidden q", "self_attn.o_proj.weight"),
)

_QKV_BIAS = (
    per_layer("attn_q.bias", "q", "self_attn.q_proj.bias"),
    per_layer("attn_k.bias", "kv", "self_attn.k_proj.bias"),
    per_layer("attn_v.bias", "kv", "self_attn.v_proj.bias"),
)

_QK_NORM = (
    per_layer("attn_q_norm.weight", "head", "self_attn.q_norm.weight"),
    per_layer("attn_k_norm.weight", "head", "self_attn.k_norm.weight"),
)

_MLP = (
    per_layer("ffn_gate.weight", "ffn hidden", "mlp.gate_proj.weight"),
    per_layer("ffn_up.weight", "ffn hidden", "mlp.up_proj.weight"),
    per_layer("ffn_down.weight", "hidden ffn", "mlp.down_proj.weight"),
)

_GATE = "mlp.experts.{expert}.gate_proj.weight"
_UP = "mlp.experts.{expert}.up_proj.weight"
_DOWN = "mlp.experts.{expert}.down_proj.weight"
_FUSED = "ffn_gate_up_exps.weight"

_EXPERTS = (
    per_layer("ffn_gate_inp.weight", "experts hidden", "mlp.gate.weight"),
    per_layer("ffn_gate_exps.weight", "experts expert_ffn hidden", _GATE, unless=_FUSED),
    per_layer("ffn_up_exps.weight", "experts expert_ffn hidden", _UP, unless=_FUSED),
    per_layer(_FUSED, "experts 2*expert_ffn hidden", _GATE, _UP, optional=True),
    per_layer("ffn_down_exps.weight", "experts hidden expert_ffn", _DOWN),
)

_SHARED_EXPERT = (
    per_layer("ffn_gate_inp_shexp.weight", "hidden", "mlp.shared_expert_gate.weight"),
    per_layer("ffn_gate_shexp.weight", "shared_ffn hidden", "mlp.shared_expert.gate_proj.weight"),
    per_layer("ffn_up_shexp.weight", "shared_ffn hidden", "mlp.shared_expert.up_proj.weight"),
    per_layer("ffn_down_shexp.weight", "hidden shared_ffn", "mlp.shared_expert.down_proj.weight"),
)

_EVERY_LAYER_IS_MOE = {"decoder_sparse_step": 1, "mlp_only_layers": []}

ARCHITECTURES = (
    Architecture(
        name="qwen2",
        model_type="qwen2",
        fields=_FIELDS,
        required=_REQUIRED,
        tensors=_FRAME + _QKV_BIAS + _MLP,
    ),
    Architecture(
        name="qwen3",
        model_type="qwen3",
        fields=_FIELDS | _HEAD_SIZE,
        required=_REQUIRED,
        tensors=_FRAME + _QK_NORM + _MLP,
    ),
    Architecture(
        name="qwen2moe",
        model_type="qwen2_moe",
        fields=_FIELDS | _MOE_FIELDS | _SHARED_FIELDS,
        required=_MOE_REQUIRED | frozenset(_SHARED_FIELDS),
        tensors=_FRAME + _QKV_BIAS + _EXPERTS + _SHARED_EXPERT,
        # llama.cpp weighs this architecture's experts by the plain softmax.
        constants=_EVERY_LAYER_IS_MOE | {"norm_topk_prob": False},
    ),
    Architecture(
        name="qwen3moe",
        model_type="qwen3_moe",
        fields=_FIELDS | _HEAD_SIZE | _MOE_FIELDS,
        required=_MOE_REQUIRED,
        tensors=_FRAME + _QK_NORM + _EXPERTS,
        # The weights of the chosen experts are renormalised to sum to one.
        constants=_EVERY_LAYER_IS_MOE | {"norm_topk_prob": True},
    ),
)
