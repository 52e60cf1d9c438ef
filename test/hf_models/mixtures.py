"""Small mixtures of experts whose references have other names in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from hf_models.conversion import (
    gate_and_up,
    granite_metadata,
    granitemoe,
    llama,
    llama_but,
    llama_metadata,
    part_of,
    window_pattern_metadata,
)
from hf_models.sizes import EXPERTS, GRANITE, PARTIAL
from hf_models.tiny import Tiny


def _deepseek(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if ".experts." in name:
        name += ".weight"
    for new, part in gate_and_up(name, tensor):
        yield from llama(new, part, config)


def _grok(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    layer, part = part_of(name)
    names = {
        "post_attention_layernorm.weight": "attn_output_norm",
        "pre_feedforward_layernorm.weight": "ffn_norm",
        "post_feedforward_layernorm.weight": "post_ffw_norm",
        "mlp.gate.weight": "ffn_gate_inp",
    }
    for kind in ("gate", "up", "down"):
        names[f"mlp.dense.{kind}_proj.weight"] = f"ffn_{kind}"
        names[f"mlp.experts.{kind}_proj.weight"] = f"ffn_{kind}_exps"
    if name.endswith("norm.weight"):
        tensor = tensor + 1
    yield f"=blk.{layer}.{names[part]}.weight" if part in names else name, tensor


def _grok_metadata(config: Any) -> dict[str, Any]:
    return {
        "embedding_scale": config.embedding_multiplier_scale,
        "logit_scale": config.output_multiplier_scale,
        "attention.output_scale": config.attn_output_multiplier,
        "attention.temperature_length": config.attn_temperature_len,
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "router_logit_softcapping": config.router_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "expert_feed_forward_length": config.moe_intermediate_size,
    }


_GROK = {
    **{"head_dim": 32, "num_local_experts": 4, "num_experts_per_tok": 2},
    **{"layer_types": ["full_attention"] * 2, "embedding_multiplier_scale": 8.0},
    **{"output_multiplier_scale": 0.7, "attn_output_multiplier": 0.25},
    **{"attn_logit_softcapping": 3.0, "router_logit_softcapping": 1.5},
}


def _ocr(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield from gate_and_up(f"{name}.weight" if ".experts." in name else name, tensor)


def _deepseek_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
    }


def _ling_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": config.shared_intermediate_size // config.intermediate_size,
        "expert_weights_scale": 1.0,
        "expert_weights_norm": True,
        "leading_dense_block_count": 0,
    }


def _afmoe_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "attention.sliding_window": config.sliding_window,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.num_shared_experts,
        "expert_weights_scale": config.route_scale,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.num_dense_layers,
    }


def _afmoe(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield name.replace("expert_bias", "expert_bias.bias"), tensor


def _swa_metadata(config: Any) -> dict[str, Any]:
    found = granite_metadata(config) | window_pattern_metadata(config)
    found["attention.rope_pattern"] = [bool(theta) for theta in config.layer_rope_theta]
    shared = getattr(config, "shared_intermediate_size", 0)
    return found | ({"expert_shared_feed_forward_length": shared} if shared else {})


def _swa(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    names = {
        "self_attn.sinks": "attn_sinks",
        "block_sparse_moe.router.weight": "ffn_gate_inp",
        "block_sparse_moe.experts.gate_up_proj": "ffn_gate_up_exps",
        "block_sparse_moe.experts.down_proj": "ffn_down_exps",
        "block_sparse_moe.input_linear.weight": "ffn_gate_up_exps",
        "block_sparse_moe.output_linear.weight": "ffn_down_exps",
        "shared_mlp.input_linear.weight": "ffn_up_shexp",
        "shared_mlp.output_linear.weight": "ffn_down_shexp",
    }
    yield from llama_but(names, name, tensor, config)


#: Tensors of MiniMax M3 by the end of their names, of the file's blocks.
_M3 = {
    "mlp.gate_up_proj.weight": ("ffn_gate", "ffn_up"),
    "mlp.down_proj.weight": ("ffn_down",),
    "mlp.shared_experts.gate_up_proj.weight": ("ffn_gate_shexp", "ffn_up_shexp"),
    "mlp.shared_experts.down_proj.weight": ("ffn_down_shexp",),
    "mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "mlp.experts.down_proj": ("ffn_down_exps",),
    "mlp.gate.weight": ("ffn_gate_inp",),
    **{
        f"self_attn.indexer.{part}_{kind}.weight": (f"indexer.{part}_{kind}",)
        for part in "qk"
        for kind in ("proj", "norm")
    },
}


def _minimax_m3(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    layer, part = part_of(name)
    if name.endswith("norm.weight"):
        tensor = tensor + 1
    if part in _M3:
        new = _M3[part]
        for kind, rows in zip(new, tensor.chunk(len(new), -2 if len(new) > 1 else 0), strict=True):
            yield f"=blk.{layer}.{kind}.weight", rows
    elif part == "mlp.gate.e_score_correction_bias":
        yield f"=blk.{layer}.exp_probs_b.bias", tensor
    else:
        yield name, tensor


def _minimax_m3_metadata(config: Any) -> dict[str, Any]:
    return {
        "feed_forward_length": config.dense_intermediate_size,
        "expert_feed_forward_length": config.intermediate_size,
        "expert_shared_count": config.shared_intermediate_size // config.intermediate_size,
        "expert_gating_func": 2,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": True,
        "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        "rope.dimension_count": config.rotary_dim,
        "attention.indexer.head_count": config.index_n_heads,
        "attention.indexer.key_length": config.index_head_dim,
        "attention.indexer.top_k": config.index_topk_blocks,
        "attention.indexer.block_size": config.index_block_size,
        "attention.indexer.local_blocks": config.index_local_blocks,
    }


#: The second layer has no rotary embedding.
_SWA = GRANITE | {
    "num_hidden_layers": 4,
    "sliding_window": 16,
    "layer_rope_theta": [30000.0, 0, 30000.0, 30000.0],
}

_softmax = partial(Tiny, model_type="deepseek_ocr2_text", convert=_deepseek)
_UNGATED = EXPERTS | {"n_routed_experts": 4, "n_shared_experts": 2, "routed_scaling_factor": 2.5}

MIXTURES: dict[str, Tiny] = {
    "deepseek-moe": _softmax(
        "deepseek",
        sizes=_UNGATED | {"mlp_layer_types": ["dense", "sparse"]},
        metadata=_deepseek_metadata,
    ),
    # Its text; these keys say nothing of it.
    "deepseek-ocr": Tiny(
        "deepseek2-ocr",
        "deepseek_ocr2_text",
        # llama.cpp takes no others.
        _UNGATED
        | {"mlp_layer_types": ["dense", "sparse"], "num_key_value_heads": 4}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        lambda config: (
            _deepseek_metadata(config) | {"rope.dimension_count": 8, "attention.sliding_window": 8}
        ),
        _ocr,
        names="deepseek2",
        twin=True,
    ),
    "ling-unnormalized": _softmax(
        "bailingmoe",
        sizes=_UNGATED | {"mlp_layer_types": ["sparse"] * 2},
        metadata=_deepseek_metadata,
        twin=True,
    ),
    # Its weights are normalized.
    "ling": Tiny(
        "bailingmoe",
        "granitemoeshared",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
        | {"shared_intermediate_size": 128, "attention_multiplier": 32**-0.5},
        _ling_metadata,
        granitemoe,
        twin=True,
    ),
    "grok-2": Tiny(
        "grok",
        "grok_by_gemma2",
        _GROK
        | {"residual_moe": True, "moe_intermediate_size": 64, "final_logit_softcapping": 3.0}
        | {"attn_temperature_len": 16},
        _grok_metadata,
        _grok,
    ),
    "grok-1": Tiny(
        "grok",
        "grok_by_gemma2",
        _GROK
        | {"residual_moe": False, "moe_intermediate_size": None, "final_logit_softcapping": None}
        | {"attn_temperature_len": None, "tie_word_embeddings": True},
        _grok_metadata,
        _grok,
        twin=True,
    ),
    "minimax-m3": Tiny(
        "minimax-m3",
        "minimax_m3_vl_text",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 64}
        | {"shared_intermediate_size": 128, "dense_intermediate_size": 192, "head_dim": 32}
        | {"mlp_layer_types": ["dense", "sparse"], "rotary_dim": 16, "rope_parameters": PARTIAL}
        | {"layer_types": ["full_attention", "minimax_m3_sparse"], "routed_scaling_factor": 2.5}
        # In all longer than the prompts: within it everything is attended to.
        | {"index_block_size": 16, "index_topk_blocks": 16, "index_local_blocks": 2}
        | {"index_n_heads": 2, "index_head_dim": 64},
        _minimax_m3_metadata,
        _minimax_m3,
        names="minimax-m2",
    ),
    "granite-swa": Tiny("granite_swa", "granite_swa", _SWA, _swa_metadata, _swa, names="granite"),
    "granite-swa-moe": Tiny(
        "granite_swa",
        "granitemoe_swa",
        _SWA | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 96},
        _swa_metadata,
        _swa,
        names="granitemoe",
        twin=True,
    ),
    "trinity": Tiny(
        "afmoe",
        "afmoe",
        EXPERTS
        | {"num_experts": 4, "num_shared_experts": 1, "num_dense_layers": 1, "head_dim": 64}
        | {"num_hidden_layers": 4, "sliding_window": 16, "mup_enabled": True, "route_scale": 2.5},
        _afmoe_metadata,
        _afmoe,
    ),
}
