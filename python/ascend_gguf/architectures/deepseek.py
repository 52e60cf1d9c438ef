"""DeepSeek V2 and V3, and models of their shape, Mistral 4 among them: latent attention (MLA)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ascend_gguf.architectures import rope
from ascend_gguf.architectures.base import Architecture, Rename, per_layer
from ascend_gguf.architectures.fields import Fields, length
from ascend_gguf.architectures.layers import groups
from ascend_gguf.architectures.llama import has_experts
from ascend_gguf.architectures.metadata import Attributes, number
from ascend_gguf.architectures.parts import (
    DENSE_OR_SPARSE,
    FIELDS,
    FRAME,
    GROUPED_DEFAULTS,
    GROUPED_ROUTING,
    NORMS,
    ROUTED_FIELDS,
    SIGMOID,
    router_bias,
)
from ascend_gguf.reader import GGUFFile

LATENT_FIELDS: Fields = {
    "attention.kv_lora_rank": "kv_lora_rank",
    "rope.dimension_count": "qk_rope_head_dim",
}
_DENSE_FIELDS = FIELDS | LATENT_FIELDS | {"attention.q_lora_rank": length("q_lora_rank")}
_FIELDS = _DENSE_FIELDS | ROUTED_FIELDS | GROUPED_ROUTING
#: Keys that :func:`head_sizes` reads.
HEAD_SIZES = frozenset(
    f"attention.{kind}_length{end}" for kind in ("key", "value") for end in ("", "_mla")
)
_READS = HEAD_SIZES | {
    "rope.scaling.yarn_log_multiplier",
    "expert_gating_func",
    "attention.temperature_scale",
    "attention.temperature_length",
}
_DEFAULTS = GROUPED_DEFAULTS | {"q_lora_rank": None}


def _join_kv_b(k_b: torch.Tensor, v_b: torch.Tensor, config: Any) -> torch.Tensor:
    """``kv_b_proj`` from its halves; conversion transposed the first.

    Args:
        k_b: ``[heads, latent, nope]``.
        v_b: ``[heads, value, latent]``.

    Returns:
        ``[heads * (nope + value), latent]``.
    """
    return torch.cat([k_b.transpose(1, 2), v_b], dim=1).flatten(0, 1)


#: Decoded where the engine's loader joins or splits matrices.
LATENT_ATTENTION: tuple[Rename, ...] = (
    per_layer(
        "attn_q.weight", "heads*qk hidden", "self_attn.q_proj.weight", unless="attn_q_a.weight"
    ),
    per_layer(
        "attn_q_a.weight", "q_lora hidden", "self_attn.q_a_proj.weight", dense=True, optional=True
    ),
    per_layer("attn_q_a_norm.weight", "q_lora", "self_attn.q_a_layernorm.weight", optional=True),
    per_layer("attn_q_b.weight", "heads*qk q_lora", "self_attn.q_b_proj.weight", optional=True),
    per_layer(
        "attn_kv_a_mqa.weight",
        "kv_lora+rope hidden",
        "self_attn.kv_a_proj_with_mqa.weight",
        dense=True,
    ),
    per_layer("attn_kv_a_norm.weight", "kv_lora", "self_attn.kv_a_layernorm.weight"),
    per_layer(
        "attn_k_b.weight",
        "heads kv_lora nope",
        "self_attn.kv_b_proj.weight",
        undo=_join_kv_b,
        beside=("attn_v_b.weight",),
        dense=True,
        unless="attn_kv_b.weight",
    ),
    per_layer("attn_v_b.weight", "heads v_head kv_lora", unless="attn_kv_b.weight"),
    # In files before May 2025.
    per_layer(
        "attn_kv_b.weight",
        "heads*nope+heads*v_head kv_lora",
        "self_attn.kv_b_proj.weight",
        dense=True,
        optional=True,
    ),
    per_layer("attn_output.weight", "hidden heads*v_head", "self_attn.o_proj.weight"),
)

_BODY = FRAME + NORMS + LATENT_ATTENTION + DENSE_OR_SPARSE

_ROUTER_BIAS = router_bias("mlp.gate.e_score_correction_bias")


def head_sizes(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Sizes of the heads of latent attention.

    Files with the halves of kv_b describe attention over latent vectors, with one head, and have
    separate keys for the sizes of the model's own heads.
    """

    def size(name: str) -> int:
        found = number(file, f"attention.{name}_mla")
        return found or number(file, f"attention.{name}", required=True)

    qk = size("key_length")
    return {
        "qk_head_dim": qk,
        "qk_nope_head_dim": qk - attributes["qk_rope_head_dim"],
        "v_head_dim": size("value_length"),
        "num_key_value_heads": attributes["num_attention_heads"],
    }


def _groups(file: GGUFFile, attributes: Attributes) -> Attributes:
    if attributes["n_routed_experts"] == 256:
        # Files of DeepSeek V3 and R1 before September 2025 lack the key; no other model has 256.
        attributes = {"n_group": 8, "topk_group": 4, **attributes}
    return groups(file, attributes)


def _greedy(file: GGUFFile, attributes: Attributes) -> Attributes:
    grouped = attributes["n_group"] > 1
    return {"topk_method": "group_limited_greedy" if grouped else "greedy"}


def _rope(file: GGUFFile, attributes: Attributes) -> Attributes:
    found = rope.parameters(file, attributes)
    # llama.cpp's converter writes a tenth of ``mscale_all_dim``; ``mscale`` has the same value in
    # every published model.  llama.cpp takes it for one in Mistral 4.
    tenth = number(file, "rope.scaling.yarn_log_multiplier", float, least=0)
    rope.refuse_attention_factor(file, found)
    if tenth is not None:
        of_all = round(10 * tenth, 6)
        mscale = 1.0 if file.architecture == "mistral4" else of_all
        found |= {"mscale": mscale, "mscale_all_dim": of_all}
    return found


def _temperature(file: GGUFFile, attributes: Attributes) -> Attributes:
    """How queries grow with their position: Mistral Large 3."""
    beta = number(file, "attention.temperature_scale", float, least=0)
    if not beta:
        return {}
    length = number(file, "attention.temperature_length")
    length = length or number(file, "rope.scaling.original_context_length", required=True)
    return {"llama_4_scaling": {"beta": beta, "original_max_position_embeddings": length}}


def _routes_by_sigmoid(file: GGUFFile) -> bool:
    gating = number(file, "expert_gating_func", least=0)
    if gating:
        return gating == SIGMOID
    # First files of GLM-4.7-Flash; llama.cpp recognizes them by these sizes.
    embedding = file.tensors.get("token_embd.weight")
    rows = embedding.shape[0] if embedding is not None else 0
    return rows == 154880 and number(file, "block_count") in (47, 48)


def _all_dense(file: GGUFFile, attributes: Attributes) -> Attributes:
    return {"first_k_dense_replace": attributes["num_hidden_layers"]}


#: Of models without experts, about which their files speak all the same.
_OF_EXPERTS = frozenset({"expert_feed_forward_length", "leading_dense_block_count"})

_BY_SOFTMAX = Architecture(
    name="deepseek2",
    model_type="deepseek_v2",
    fields=_FIELDS,
    defaults=_DEFAULTS,
    reads=_READS - {"expert_gating_func"},
    fixed={"expert_gating_func": (1,)},
    tensors=_BODY,
    rope=_rope,
    constants={"scoring_func": "softmax", "moe_layer_freq": 1},
    derived=(head_sizes, _groups, _greedy, _temperature),
)

#: Without groups: llama.cpp and transformers rank those of Mistral 4 in another way.
_UNGROUPED = {key: name for key, name in _FIELDS.items() if "expert_group" not in key}

_BY_SIGMOID = Architecture(
    name="deepseek2",
    mark=_routes_by_sigmoid,
    model_type="deepseek_v3",
    fields=_FIELDS,
    defaults=_DEFAULTS,
    reads=_READS,
    tensors=(*_BODY, _ROUTER_BIAS),
    rope=_rope,
    constants={"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1},
    derived=(head_sizes, _groups, _temperature),
)

_TEMPERATURE = frozenset(key for key in _READS if "temperature" in key)
#: Which layers have an indexer; the others attend to what the last of them chose.
INDEXER_TYPES = "attention.indexer.types"
_INDEXER_FIELDS = {
    "attention.indexer.head_count": "indexer_heads",
    "attention.indexer.key_length": "indexer_head_size",
    "attention.indexer.top_k": "sparse_attention_size",
}


def _indexer(name: str, shape: str) -> Rename:
    """A tensor that chooses what to attend to; GLM-5.2 has it in some layers."""
    return per_layer(f"indexer.{name}", shape, optional=True)


INDEXER = (
    _indexer("k_norm.weight", "indexer_head"),
    _indexer("k_norm.bias", "indexer_head"),
    _indexer("proj.weight", "indexer_heads hidden"),
    _indexer("attn_k.weight", "indexer_head hidden"),
    _indexer("attn_q_b.weight", "indexer_heads*indexer_head q_lora"),
)

#: DeepSeek 3.2 and GLM-5 attend to the ``sparse_attention_size`` tokens that an indexer chooses.
#: Up to as many tokens of context that is all of them, and the model DeepSeek V3.
_SPARSE = replace(
    _BY_SIGMOID,
    name="deepseek32",
    mark=lambda file: True,
    fields=_FIELDS | _INDEXER_FIELDS,
    reads=_READS - _TEMPERATURE - {"expert_gating_func"} | {INDEXER_TYPES},
    fixed={"expert_gating_func": (SIGMOID,)},
    tensors=(*_BODY, _ROUTER_BIAS, *INDEXER),
    derived=(head_sizes, groups),
)

#: Youtu-LLM.
_DENSE = Architecture(
    name="deepseek2",
    mark=lambda file: not has_experts(file),
    model_type="deepseek_v3",
    fields=_DENSE_FIELDS,
    defaults={"q_lora_rank": None},
    reads=_READS - {"expert_gating_func"} | _OF_EXPERTS,
    fixed={"expert_shared_count": (0,), "expert_gating_func": (1, 2)},
    tensors=_BODY,
    rope=_rope,
    # No layer has it, but the engine deals at least one.
    constants={"n_routed_experts": 1, "n_shared_experts": 0, "moe_layer_freq": 1},
    derived=(head_sizes, _all_dense, _temperature),
)

ARCHITECTURES = (
    _DENSE,
    _BY_SIGMOID,
    _BY_SOFTMAX,
    replace(_BY_SOFTMAX, name="mistral4", fields=_UNGROUPED),
    _SPARSE,
    replace(_SPARSE, name="glm-dsa"),
)
