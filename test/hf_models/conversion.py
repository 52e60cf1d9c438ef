"""What llama.cpp's conversion does to tensors and metadata, architecture by architecture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch


def pairs_from_halves(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of each head so that those which the rotary embedding turns together are neighbours."""
    head = rows.shape[0] // heads
    order = torch.arange(head).view(2, head // 2).T.flatten()
    return rows.view(heads, head, -1)[:, order].reshape(rows.shape)


def llama(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if re.search(r"q_proj\.(weight|bias)$", name):
        tensor = pairs_from_halves(tensor, config.num_attention_heads)
    if re.search(r"k_proj\.(weight|bias)$", name):
        tensor = pairs_from_halves(tensor, config.num_key_value_heads)
    # The name map knows Mixtral's experts by their names before transformers.
    if "block_sparse_moe.experts" in name:
        name = name.removeprefix("model.").replace("block_sparse_moe", "feed_forward")
    yield name, tensor


def part_of(name: str) -> tuple[str, str]:
    """The number of a tensor's layer, and its name in that."""
    layer, _, part = name.partition("layers.")[2].partition(".")
    return layer, part


def llama_but(
    names: dict[str, str], name: str, tensor: torch.Tensor, config: Any
) -> Iterator[tuple[str, torch.Tensor]]:
    """As :func:`llama`, but for tensors of layers whose names in the file are given."""
    layer, part = part_of(name)
    if part in names:
        yield f"=blk.{layer}.{names[part]}.weight", tensor
    else:
        yield from llama(name, tensor, config)


def llama_metadata(config: Any) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"vocab_size": config.vocab_size, "rope.dimension_count": head}


def llama3_factors(config: Any) -> dict[str, torch.Tensor]:
    rope = config.rope_parameters
    head = config.head_dim
    frequencies = 1.0 / rope["rope_theta"] ** (torch.arange(0, head, 2) / head)
    factors = []
    for wave in (2 * torch.pi / frequencies).tolist():
        turns = rope["original_max_position_embeddings"] / wave
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        if turns > high:
            factors.append(1.0)
        elif turns < low:
            factors.append(rope["factor"])
        else:
            smooth = (turns - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return {"rope_freqs.weight": torch.tensor(factors)}


def plus_one(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    yield name, tensor + 1 if name.endswith("norm.weight") else tensor


def gemma2_metadata(config: Any) -> dict[str, Any]:
    return {
        "attn_logit_softcapping": config.attn_logit_softcapping,
        "final_logit_softcapping": config.final_logit_softcapping,
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base": None,
    }


def gemma3_metadata(config: Any) -> dict[str, Any]:
    return {
        "attention.sliding_window": config.sliding_window,
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
    }


def granite_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "attention.scale": config.attention_multiplier,
        "embedding_scale": config.embedding_multiplier,
        "residual_scale": config.residual_multiplier,
        "logit_scale": config.logits_scaling,
    }


def granitemoe(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if "input_linear" in name:
        layer = name.split(".")[2]
        kind = "shexp" if "shared_mlp" in name else "exps"
        gate, up = tensor.chunk(2, dim=-2)
        yield f"=blk.{layer}.ffn_gate_{kind}.weight", gate
        yield f"=blk.{layer}.ffn_up_{kind}.weight", up
    else:
        yield from llama(name, tensor, config)


def phi3_metadata(config: Any) -> dict[str, Any]:
    head = config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    return {
        "rope.dimension_count": int(head * rope["partial_rotary_factor"]),
        "rope.scaling.original_context_length": rope["original_max_position_embeddings"],
        "attention.sliding_window": config.sliding_window or 0,
    }


def phi3_factors(config: Any) -> dict[str, torch.Tensor]:
    rope = config.rope_parameters
    return {
        f"rope_factors_{kind}.weight": torch.tensor(rope[f"{kind}_factor"])
        for kind in ("long", "short")
    }


def partial_rope_metadata(config: Any) -> dict[str, Any]:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {"rope.dimension_count": int(head * config.rope_parameters["partial_rotary_factor"])}


def window_pattern_metadata(config: Any) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [
            kind == "sliding_attention" for kind in config.layer_types
        ],
    }


def glm4moe_metadata(config: Any) -> dict[str, Any]:
    return partial_rope_metadata(config) | {
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_gating_func": 2,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_weights_norm": config.norm_topk_prob,
        # Blocks that predict further tokens count, also where a checkpoint leaves them out.
        "block_count": config.num_hidden_layers + config.num_nextn_predict_layers,
        "nextn_predict_layers": config.num_nextn_predict_layers,
    }


def minimax_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_feed_forward_length": config.intermediate_size,
        "expert_gating_func": 2,
        "rope.dimension_count": config.rotary_dim,
    }


def ernie_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_count": config.moe_num_experts,
        "expert_used_count": config.moe_k,
        "interleave_moe_layer_step": config.moe_layer_interval,
        "leading_dense_block_count": config.moe_layer_start_index,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.moe_num_shared_experts,
        "expert_shared_feed_forward_length": config.intermediate_size // config.num_key_value_heads,
    }


def hunyuan_metadata(config: Any) -> dict[str, Any]:
    return {
        "expert_shared_feed_forward_length": config.intermediate_size,
        "expert_feed_forward_length": config.moe_intermediate_size[0],
        "expert_used_count": config.moe_topk[0],
        "expert_shared_count": config.num_shared_expert[0],
    }


def deepseek(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if name.endswith("kv_b_proj.weight"):
        heads = config.num_attention_heads
        k, v = tensor.view(heads, -1, tensor.shape[1]).split(
            [config.qk_nope_head_dim, config.v_head_dim], dim=1
        )
        yield name.replace("kv_b_proj", "k_b_proj"), k.transpose(1, 2)
        yield name.replace("kv_b_proj", "v_b_proj"), v
    else:
        yield name, tensor


def deepseek_metadata(config: Any) -> dict[str, Any]:
    found = {
        "vocab_size": config.vocab_size,
        "attention.head_count_kv": 1,
        "attention.q_lora_rank": config.q_lora_rank,
        "attention.kv_lora_rank": config.kv_lora_rank,
        "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
        "attention.value_length_mla": config.v_head_dim,
        "rope.dimension_count": config.qk_rope_head_dim,
        "leading_dense_block_count": config.first_k_dense_replace,
        "expert_feed_forward_length": config.moe_intermediate_size,
        "expert_shared_count": config.n_shared_experts,
        "expert_weights_scale": config.routed_scaling_factor,
        "expert_gating_func": 2 if config.model_type == "deepseek_v3" else 1,
    }
    if config.norm_topk_prob:
        found["expert_weights_norm"] = True
    if "mscale_all_dim" in config.rope_parameters:
        found["rope.scaling.yarn_log_multiplier"] = 0.1 * config.rope_parameters["mscale_all_dim"]
    return found


def gpt_oss(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    name = re.sub(r"(sinks)$", r"\1.weight", name)
    name = re.sub(r"(experts\.\w+_proj)_bias$", r"\1.bias", name)
    name = re.sub(r"(experts\.\w+_proj)$", r"\1.weight", name)
    if "experts" in name and name.endswith("weight"):
        tensor = tensor.transpose(1, 2)
    if "gate_up_proj" in name:
        yield name.replace("gate_up", "gate"), tensor[:, ::2]
        yield name.replace("gate_up", "up"), tensor[:, 1::2]
    else:
        yield name, tensor


def gpt_oss_metadata(config: Any) -> dict[str, Any]:
    return {
        "attention.sliding_window": config.sliding_window,
        "expert_feed_forward_length": config.intermediate_size,
    }


def llama4(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    if re.search(r"experts\.\w+_proj$", name):
        tensor = tensor.transpose(1, 2)
        name += ".weight"
    yield from gate_and_up(name, tensor)


def gate_and_up(name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """What experts have in one tensor, gate above up, as two; another tensor as it is."""
    if "experts.gate_up_proj" in name:
        gate, up = tensor.chunk(2, dim=1)
        yield name.replace("gate_up", "gate"), gate
        yield name.replace("gate_up", "up"), up
    else:
        yield name, tensor


def llama4_metadata(config: Any) -> dict[str, Any]:
    return llama_metadata(config) | {
        "feed_forward_length": config.intermediate_size_mlp,
        "interleave_moe_layer_step": config.interleave_moe_layer_step,
        "expert_feed_forward_length": config.intermediate_size,
    }


def bailing_metadata(config: Any) -> dict[str, Any]:
    return glm4moe_metadata(config) | {
        "vocab_size": config.vocab_size,
        "expert_shared_feed_forward_length": config.moe_intermediate_size * config.n_shared_experts,
    }


def tiled_heads(tensor: torch.Tensor, config: Any) -> torch.Tensor:
    """Rows of value heads, grouped by key heads, so that those of one key head are apart."""
    keys, values = config.linear_num_key_heads, config.linear_num_value_heads
    order = torch.arange(values).view(keys, values // keys).T.flatten()
    return tensor.view(values, -1, *tensor.shape[1:])[order].reshape(tensor.shape)


def qwen35(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        tensor = tensor.squeeze()
        tensor = torch.cat([tensor[:keys], tiled_heads(tensor[keys:], config)])
    elif re.search(r"in_proj_[zba]\.weight$|A_log$|dt_bias$", name):
        tensor = tiled_heads(tensor, config)
    elif name.endswith("out_proj.weight"):
        tensor = tiled_heads(tensor.T, config).T
    elif name.endswith("norm.weight") and "linear_attn" not in name:
        tensor = tensor + 1
    if name.endswith("A_log"):
        tensor = -tensor.exp()
    name = name.replace("dt_bias", "dt_proj.bias")
    if re.search(r"experts\.\w+_proj$", name):
        name += ".weight"
    yield from gate_and_up(name, tensor)


def qwen35_metadata(config: Any) -> dict[str, Any]:
    found = partial_rope_metadata(config) | {
        "ssm.conv_kernel": config.linear_conv_kernel_dim,
        "ssm.state_size": config.linear_key_head_dim,
        "ssm.group_count": config.linear_num_key_heads,
        "ssm.time_step_rank": config.linear_num_value_heads,
        "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
        "attention.recurrent_layers": [kind == "linear_attention" for kind in config.layer_types],
    }
    if config.model_type != "qwen3_next":
        found["rope.dimension_sections"] = [11, 11, 10, 0]
    if config.model_type != "qwen3_5_text":
        found |= {
            "expert_feed_forward_length": config.moe_intermediate_size,
            "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
        }
    return found


def sections_metadata(config: Any) -> dict[str, Any]:
    found = {"rope.dimension_sections": [16, 24, 24, 0]}
    if config.model_type != "qwen2":
        found["n_deepstack_layers"] = 3
    if config.model_type == "qwen3_moe":
        found["expert_feed_forward_length"] = config.moe_intermediate_size
    return found


def gemma4(name: str, tensor: torch.Tensor, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    layer = name.split(".")[2]
    if name.endswith("router.scale"):
        yield f"=blk.{layer}.ffn_gate_inp.scale", tensor
    elif name.endswith("per_expert_scale"):
        yield f"=blk.{layer}.ffn_down_exps.scale", tensor
    elif name.endswith("layer_scalar") or ".experts." in name:
        yield f"{name}.weight", tensor
    else:
        yield name, tensor


def gemma4_metadata(config: Any) -> dict[str, Any]:
    sliding = [kind == "sliding_attention" for kind in config.layer_types]
    layers = [config.per_layer_config[layer] for layer in range(len(sliding))]
    shared = len(sliding) - config.num_kv_shared_layers
    heads = {slides: one.head_dim for slides, one in zip(sliding, layers, strict=True)}
    found = {
        "attention.head_count_kv": [one.num_key_value_heads for one in layers],
        "attention.key_length": heads[False],
        "attention.value_length": heads[False],
        "attention.key_length_swa": heads[True],
        "attention.value_length_swa": heads[True],
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": sliding,
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "final_logit_softcapping": config.final_logit_softcapping,
        "rope.freq_base_swa": config.rope_parameters["sliding_attention"]["rope_theta"],
        "rope.dimension_count": heads[False],
        "rope.dimension_count_swa": heads[True],
    }
    if config.use_double_wide_mlp:
        width = config.intermediate_size
        found["feed_forward_length"] = [width * (1 + (i >= shared)) for i in range(len(sliding))]
    if config.enable_moe_block:
        found |= {
            "expert_used_count": config.top_k_experts,
            "expert_feed_forward_length": config.moe_intermediate_size,
        }
    return found


def gemma4_factors(config: Any) -> dict[str, torch.Tensor]:
    head = config.per_layer_config[len(config.layer_types) - 1].head_dim
    turned = int(head * config.rope_parameters["full_attention"]["partial_rotary_factor"] / 2)
    factors = torch.full((head // 2,), 1e30)
    factors[:turned] = 1
    return {"rope_freqs.weight": factors}
