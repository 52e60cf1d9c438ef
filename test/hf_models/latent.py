"""Small models of Mistral and of latent attention."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type

from hf_models.conversion import (
    deepseek,
    deepseek_metadata,
    llama,
    llama_metadata,
    phi3_factors,
)
from hf_models.sizes import EXPERTS
from hf_models.tiny import Tiny

_PLAIN_YARN = {
    "rope_type": "yarn",
    "rope_theta": 30000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
#: Queries grow within a prompt.
_YARN = _PLAIN_YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.1}


def _mistral4(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if name.endswith("experts.gate_up_proj"):
        for part, half in zip(("gate", "up"), tensor.chunk(2, dim=1), strict=True):
            yield name.replace("gate_up", part) + ".weight", half
    elif name.endswith("experts.down_proj"):
        yield f"{name}.weight", tensor
    else:
        yield from deepseek(name, tensor, config)


def _mistral4_metadata(config: Any) -> dict[str, Any]:
    return deepseek_metadata(config) | {
        "attention.temperature_scale": config.rope_parameters["llama_4_scaling_beta"],
    }


def _ministral3(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "attention.temperature_scale": config.rope_parameters["llama_4_scaling_beta"],
        "rope.scaling.yarn_log_multiplier": config.rope_parameters["mscale_all_dim"],
    }


_SPARSE = EXPERTS | {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_key_value_heads": 4,
    "first_k_dense_replace": 1,
    "q_lora_rank": 32,
    # Ascend's operators take these alone.
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    # Longer than the prompts: within it everything is attended to.
    "index_topk": 256,
    "index_n_heads": 2,
    "index_head_dim": 64,
    # transformers has no other for norms of latents.
    "rms_norm_eps": 1e-6,
}
_INDEXER = {"wk": "attn_k", "wq_b": "attn_q_b", "weights_proj": "proj", "k_norm": "k_norm"}


def _sparse(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if ".indexer." in name:
        *_, layer, _, _, part, kind = name.split(".")
        yield f"=blk.{layer}.indexer.{_INDEXER[part]}.{kind}", tensor
    else:
        yield from deepseek(name, tensor, config)


def _sparse_metadata(config: Any) -> dict[str, Any]:
    return deepseek_metadata(config) | {
        "expert_gating_func": 2,
        "attention.indexer.head_count": config.index_n_heads,
        "attention.indexer.key_length": config.index_head_dim,
        "attention.indexer.top_k": config.index_topk,
    }


_sparse_tiny = partial(
    Tiny, metadata=_sparse_metadata, convert=_sparse, names="deepseek2", npu_dtype="bfloat16"
)


#: Tensors of Hunyuan 4 by the end of their names, of the file's blocks and of none.
_HY_V4 = {
    "self_attn.linear_gate.weight": "attn_gate",
    "self_attn.learnable_sink_param": "attn_sinks",
    **{
        f"hc_{module}_layer.hc_pre.hc_{part}": f"hc_{name}_{part}"
        for module, name in (("attn", "attn"), ("mlp", "ffn"))
        for part in ("fn", "base", "scale")
    },
}


def hunyuan4(name: str, tensor: torch.Tensor, heads: int, turned: int) -> tuple[str, torch.Tensor]:
    """A tensor that transformers has written, as it was published.

    transformers mixes up names as it writes.  It turns the first half of the last ``turned`` rows
    of a head with the second, and llama.cpp and SGLang neighbours.
    """
    name = name.replace(".hc_pre.hc_head.", ".hc_head.")
    name = re.sub(r"\.hc_pre\.(hc_\w+_layer)\.", r".\1.hc_pre.", name)
    name = re.sub(r"(mlp|shared_experts)\.linear_gate", r"\1.gate_proj", name)
    of_heads = {"q_b_proj": heads, "kv_a_proj_with_mqa": 1}
    if count := of_heads.get(name.removesuffix(".weight").rpartition(".")[2]):
        rows = tensor.unflatten(0, (count, -1))
        kept, last = rows.split([rows.shape[1] - turned, turned], 1)
        last = last.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        tensor = torch.cat([kept, last], 1).flatten(0, 1)
    return name, tensor


def _hy_v4(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    heads, turned = config.num_attention_heads, config.qk_rope_head_dim
    name, tensor = hunyuan4(name, tensor, heads, turned)
    layer, _, part = name.partition("layers.")[2].partition(".")
    if part in _HY_V4:
        yield f"=blk.{layer}.{_HY_V4[part]}.weight", tensor
    elif ".hc_head." in name:
        yield f"=output_hc_{name.rpartition('_')[2]}.weight", tensor
    elif ".indexer." in name:
        yield from _sparse(name, tensor, config)
    else:
        yield from _mistral4(name, tensor, config)


def _hy_v4_metadata(config: Any) -> dict[str, Any]:
    config.first_k_dense_replace = config.mlp_layer_types.count("dense")
    return _sparse_metadata(config) | {
        "attention.indexer.types": [kind == "full" for kind in config.indexer_types],
        "expert_group_count": None,
        "expert_group_used_count": None,
        "swiglu_clamp_exp": [config.swiglu_limit] * config.num_hidden_layers,
        "hyper_connection.count": config.hc_mult,
        "hyper_connection.epsilon": config.hc_eps,
        "hyper_connection.magnitude": config.hc_magnitude,
    }


def _minicpm3_metadata(config: Any) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length": None,
        "rope.dimension_count": config.qk_rope_head_dim,
        "rope.freq_base": None,
    }


_MINICPM3 = {
    # Not written: no published model has another.
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "kv_lora_rank": 64,
    "qk_nope_head_dim": 48,
    "qk_rope_head_dim": 32,
    # transformers has no other for norms of latents.
    "rms_norm_eps": 1e-6,
}
_LONG = {
    "rope_type": "longrope",
    "factor": 1.0,
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 2048,
    "short_factor": [1.0 + 0.1 * i for i in range(16)],
    "long_factor": [1.0 + 0.5 * i for i in range(16)],
}

_minicpm3 = partial(Tiny, "minicpm3", "minicpm3", metadata=_minicpm3_metadata)

TINY = {
    "minicpm3": _minicpm3(sizes=_MINICPM3),
    "minicpm3-long": _minicpm3(
        sizes=_MINICPM3 | {"rope_parameters": _LONG}, extra=phi3_factors, twin=True
    ),
    "deepseek-v3.2": _sparse_tiny(
        "deepseek32",
        "deepseek_v32",
        _SPARSE
        | {"qk_nope_head_dim": 128, "v_head_dim": 128, "n_group": 2, "topk_group": 1}
        | {"rope_parameters": _PLAIN_YARN | {"mscale": 0.707, "mscale_all_dim": 0.707}},
    ),
    "glm-5": _sparse_tiny(
        "glm-dsa", "glm_moe_dsa", _SPARSE | {"qk_nope_head_dim": 192, "v_head_dim": 256}
    ),
    "hunyuan-4": Tiny(
        "hy_v4",
        "hy_v4",
        _SPARSE
        | {"num_hidden_layers": 3, "mlp_layer_types": ["dense", "sparse", "sparse"]}
        | {"indexer_types": ["full", "shared", "full"], "index_head_dim": 96}
        | {"qk_nope_head_dim": 96, "v_head_dim": 128}
        # Small enough to count.
        | {"swiglu_limit": 0.5, "hc_mult": 3, "hc_magnitude": 1.5, "hc_eps": 0.01},
        _hy_v4_metadata,
        _hy_v4,
        names="deepseek2",
        types={"_fn.weight": Type.F32},
    ),
    "ministral-3": Tiny(
        "mistral3", "ministral3", {"head_dim": 64, "rope_parameters": _YARN}, _ministral3, llama
    ),
    "mistral-4": Tiny(
        "mistral4",
        "mistral4",
        {"num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32}
        | {"moe_intermediate_size": 64, "num_experts_per_tok": 2, "n_routed_experts": 8}
        | {"n_shared_experts": 1, "first_k_dense_replace": 0, "kv_lora_rank": 64}
        | {"qk_nope_head_dim": 32, "qk_rope_head_dim": 32, "v_head_dim": 48}
        | {"rope_parameters": _YARN | {"mscale_all_dim": 1.0}},
        _mistral4_metadata,
        _mistral4,
    ),
}
