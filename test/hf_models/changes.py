"""What a key of the metadata means to transformers: other values of keys, and of its configuration.

Written from llama.cpp's converter and transformers' configurations, knowing nothing of the
project's table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch

from hf_models.writing import Written, auto_config, build

#: A configuration as a dictionary, changed in place.
Change = Callable[[dict[str, Any]], None]

#: Keys that say sizes of tensors: another value alone does not fit the file.
SIZES = frozenset(
    {
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "attention.key_length_mla",
        "attention.value_length_mla",
        "attention.q_lora_rank",
        "attention.kv_lora_rank",
        "attention.indexer.head_count",
        "attention.indexer.key_length",
        "attention.indexer.top_k",
        "attention.indexer.types",
        "attention.indexer.block_size",
        "attention.indexer.local_blocks",
        "hyper_connection.count",
        "expert_count",
        "expert_feed_forward_length",
        "expert_shared_count",
        "expert_shared_feed_forward_length",
        "leading_dense_block_count",
        "moe_latent_size",
        "interleave_moe_layer_step",
        "nextn_predict_layers",
        "attention.key_length_swa",
        "attention.shared_kv_layers",
        "altup.num_inputs",
        "embedding_length_per_layer_input",
        "ssm.conv_kernel",
        "ssm.state_size",
        "ssm.group_count",
        "ssm.time_step_rank",
        "ssm.inner_size",
        "shortconv.l_cache",
        "kda.head_dim",
        # Which layers have which tensors.
        "full_attention_interval",
        "attention.recurrent_layers",
        # Of these, one is enough for a file without experts or without groups to differ.
        "context_length",
        "expert_gating_func",
    }
)


def rope(config: dict[str, Any], **parameters: Any) -> None:
    """Other parameters of the rotary embedding, of layers that attend to everything."""
    found = config["rope_parameters"]
    found.get("full_attention", found).update(parameters)


def _base(config: dict[str, Any]) -> None:
    rope(config, rope_theta=50.5)
    if "layer_rope_theta" in config:
        config["layer_rope_theta"] = [50.5 if own else 0 for own in config["layer_rope_theta"]]
    if config["model_type"] == "olmo3":  # one key for all of its layers
        config["rope_parameters"]["sliding_attention"].update(rope_theta=50.5)


def _set(**attributes: Any) -> Change:
    def change(config: dict[str, Any]) -> None:
        known = {name: value for name, value in attributes.items() if name in config}
        assert known, f"transformers has none of {', '.join(attributes)}"
        config.update(known)

    return change


def _invert_layers(config: dict[str, Any]) -> None:
    other = {"full_attention": "sliding_attention", "sliding_attention": "full_attention"}
    config["layer_types"] = [other[kind] for kind in config["layer_types"]]
    if config["model_type"] == "muse_glimmer_text":  # RoPE is where a window is
        theta = config["rope_parameters"]["rope_theta"]
        types = config["layer_types"]
        config["layer_rope_theta"] = [theta * (kind == "sliding_attention") for kind in types]


def _rotate_others(config: dict[str, Any]) -> None:
    theta = max(config["layer_rope_theta"])
    config["layer_rope_theta"] = [0, theta, theta, theta]


def _experts_of_a_token(config: dict[str, Any]) -> None:
    if "ffn_config" in config:
        config["ffn_config"]["moe_top_k"] = 3
    elif "moe_topk" in config:
        config["moe_topk"] = [3] * len(config["moe_topk"])
    else:
        _set(num_experts_per_tok=3, moe_k=3, top_k_experts=3)(config)


def _clip(config: dict[str, Any]) -> None:
    _set(clip_qkv=0.7)(config.get("attn_config", config))


def _leave_out_more(config: dict[str, Any]) -> None:
    """As much in each layer: the key has the quantile of 0.8."""
    layers = config["num_hidden_layers"]
    config["activation_sparsity_pattern"] = [0.8] * layers


def _turn_less(config: dict[str, Any]) -> None:
    if "rotary_dim" in config:  # transformers reads it from here alone
        config["rotary_dim"] = 8
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    turned = 8
    if config["model_type"] == "mimo_v2_flash":  # in all layers
        config["rope_parameters"]["sliding_attention"]["partial_rotary_factor"] = turned / head
    if config["model_type"] == "step3p5":  # of layers with a window, and half of them without
        config["rope_parameters"]["sliding_attention"]["partial_rotary_factor"] = turned / head
        turned //= 2
    rope(config, partial_rotary_factor=turned / head)


def _other_temperature(config: dict[str, Any]) -> None:
    if "attn_temperature_len" in config:
        config["attn_temperature_len"] = 24
    else:
        rope(config, original_max_position_embeddings=24)


def _larger_base(config: dict[str, Any]) -> None:
    head = config["head_dim"]
    rope(config, rope_theta=config["rope_parameters"]["rope_theta"] * 3 ** (head / (head - 2)))


#: Key -> its other value, and what transformers calls that.
OTHER: Mapping[str, tuple[Any, Change]] = {
    "attention.layer_norm_rms_epsilon": (
        0.01,
        _set(rms_norm_eps=0.01, norm_eps=0.01, layer_norm_epsilon=0.01),
    ),
    "attention.layer_norm_epsilon": (
        0.01,
        _set(layer_norm_eps=0.01, norm_epsilon=0.01, layer_norm_epsilon=0.01),
    ),
    "attention.value_scale": (0.4, _set(attention_value_scale=0.4)),
    "attention.scale": (0.3, _set(attention_multiplier=0.3)),
    "attention.temperature_scale": (0.3, lambda c: rope(c, llama_4_scaling_beta=0.3)),
    "attention.temperature_length": (24, _other_temperature),
    "attention.sliding_window": (10, _set(sliding_window=10)),
    "attention.sliding_window_pattern": (None, _invert_layers),
    "attention.rope_pattern": ([False, True, True, True], _rotate_others),
    "attention.output_scale": (0.4, _set(attn_output_multiplier=0.4)),
    "embedding_scale": (
        2.0,
        _set(embedding_multiplier=2.0, embedding_multiplier_scale=2.0),
    ),
    "residual_scale": (0.7, _set(residual_multiplier=0.7)),
    "logit_scale": (
        0.8,
        _set(
            logit_scale=0.8,
            logits_scaling=0.8,
            output_multiplier=0.8,
            output_multiplier_scale=0.8,
        ),
    ),
    "router_logit_softcapping": (0.4, _set(router_logit_softcapping=0.4)),
    "attn_logit_softcapping": (0.4, _set(attn_logit_softcapping=0.4)),
    "final_logit_softcapping": (1.5, _set(final_logit_softcapping=1.5)),
    "attention.clamp_kqv": (0.7, _clip),
    "num_loops": (2, _set(num_loops=2)),
    "skip_loop_final_norm": (True, _set(skip_loop_final_norm=True)),
    "altup.active_idx": (1, _set(altup_active_idx=1)),
    "activation_sparsity_scale": (None, _leave_out_more),
    "expert_used_count": (3, _experts_of_a_token),
    "expert_group_count": (None, lambda c: c.update(n_group=2 * c["n_group"])),
    "expert_group_used_count": (None, lambda c: c.update(topk_group=c["topk_group"] + 1)),
    "expert_weights_scale": (
        1.7,
        _set(
            routed_scaling_factor=1.7,
            router_scaling_factor=1.7,
            route_scale=1.7,
            moe_router_scaling_factor=1.7,
            moe_routed_scaling_factor=1.7,
        ),
    ),
    "expert_weights_norm": (None, lambda c: c.update(norm_topk_prob=not c["norm_topk_prob"])),
    "rope.dimension_count": (8, _turn_less),
    "rope.dimension_count_swa": (
        16,
        lambda c: c["rope_parameters"]["sliding_attention"].update(partial_rotary_factor=0.5),
    ),
    "swiglu_clamp_exp": (
        None,
        _set(swiglu_limits=[0.0, 0.3, 0.0, 0.2], swiglu_limit=0.3),
    ),
    "swiglu_clamp_shexp": (
        [0.0, 0.0, 0.3, 0.2],
        _set(swiglu_limits_shared=[0.0, 0.0, 0.3, 0.2]),
    ),
    "hyper_connection.epsilon": (0.05, _set(hc_eps=0.05)),
    "hyper_connection.magnitude": (0.7, _set(hc_magnitude=0.7)),
    "rope.freq_base": (50.5, _base),
    "rope.scaling.alpha": (3.0, _larger_base),
    "rope.freq_base_swa": (
        777.5,
        lambda c: c["rope_parameters"]["sliding_attention"].update(rope_theta=777.5),
    ),
}

#: A factor of linear scaling, by the key of 2023.
LINEAR: Mapping[str, tuple[Any, Change]] = {
    "rope.scale_linear": (2.0, lambda c: rope(c, rope_type="linear", factor=2.0)),
}


def _of_all_dimensions(config: dict[str, Any]) -> None:
    """A multiplier of the logarithm: the tenth of one, but of Ministral."""
    kind = config["model_type"]
    of_all = 0.15 if kind == "ministral3" else 1.5
    # DeepSeek's files and GLM's say that there are two which are equal.
    rope(config, mscale=1.0 if "istral" in kind else of_all, mscale_all_dim=of_all)


#: YaRN, key by key; without one of them it is what llama.cpp takes then.
YARN: Mapping[str, tuple[Any, Change]] = {
    "rope.scaling.type": ("yarn", lambda c: rope(c, rope_type="yarn")),
    "rope.scaling.factor": (3.0, lambda c: rope(c, factor=3.0)),
    "rope.scaling.original_context_length": (
        512,
        lambda c: rope(c, original_max_position_embeddings=512),
    ),
    "rope.scaling.yarn_beta_fast": (6.0, lambda c: rope(c, beta_fast=6.0)),
    "rope.scaling.yarn_beta_slow": (4.0, lambda c: rope(c, beta_slow=4.0)),
    "rope.scaling.yarn_attn_factor": (0.7, lambda c: rope(c, attention_factor=0.7)),
    "rope.scaling.yarn_log_multiplier": (0.15, _of_all_dimensions),
}


def without(key: str, config: dict[str, Any]) -> None:
    """A configuration of :data:`YARN` as it is where the file lacks ``key``."""
    found = config["rope_parameters"]
    found = found.get("full_attention", found)
    if key == "rope.scaling.type":
        kept = ("rope_theta", "factor", "partial_rotary_factor", "llama_4_scaling_beta")
        kept += ("original_max_position_embeddings",) * ("llama_4_scaling_beta" in found)
        parameters = {name: found[name] for name in kept if name in found}
        found.clear()
        found.update(parameters, rope_type="linear")
    elif key == "rope.scaling.factor":
        # transformers has no plain rotary embedding of Mistral 4, which is that of a factor of one.
        plain = {"factor": 1.0} if config["model_type"] == "mistral4" else {"rope_type": "default"}
        found.update(plain)
    elif key == "rope.scaling.original_context_length":
        names = ("max_position_embeddings", "max_seq_len")
        context = next(config[name] for name in names if name in config)
        found.update(original_max_position_embeddings=context)
    elif key == "rope.scaling.yarn_attn_factor":
        found.pop("attention_factor")
    elif key == "rope.scaling.yarn_log_multiplier":
        found.pop("mscale"), found.pop("mscale_all_dim")
    else:
        found.pop(key.removeprefix("rope.scaling.yarn_"))


def changed(model: Written, *changes: Change) -> torch.nn.Module:
    """transformers' model of the same numbers under another configuration."""
    base = model.reference
    attributes = deepcopy(base.config.to_dict())
    fields = type(base.config).__dataclass_fields__
    for name, written in base.config.attribute_map.items():
        if name in fields and written not in fields and written in attributes:
            attributes[name] = attributes.pop(written)
    if "head_dim" in attributes and attributes["head_dim"] is None:  # YaRN would multiply it
        attributes["head_dim"] = attributes["hidden_size"] // attributes["num_attention_heads"]
    if experts := attributes.get("ffn_config"):  # DBRX's refuses what all configurations have
        sizes = ("ffn_hidden_size", "moe_num_experts", "moe_top_k")
        attributes["ffn_config"] = {name: experts[name] for name in sizes}
    for change in changes:
        change(attributes)
    config = auto_config().for_model(**attributes)
    other = build(config, attn_implementation="eager")
    other.load_state_dict(base.state_dict())
    return other.eval()
