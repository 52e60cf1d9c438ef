"""The words that the tables use for shapes and kinds of layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any


def first(config: Any, *attributes: str, default: Any = None) -> Any:
    """The first of the attributes that has a value in the configuration."""
    values = (getattr(config, name, None) for name in attributes)
    return next((value for value in values if value is not None), default)


def head_size(config: Any) -> int:
    """Rows of one query head."""
    return first(config, "head_dim") or config.hidden_size // config.num_attention_heads


def experts(config: Any) -> int:
    """Routed experts of an MoE layer; transformers has many names for them."""
    names = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
    return first(config, *names, default=0)


def _ffn(config: Any) -> int:
    of_models = ("intermediate_size_mlp", "prefix_dense_intermediate_size")
    found = first(config, *of_models, "dense_intermediate_size", "intermediate_size")
    return found[0] if isinstance(found, list) else found  # of each layer, all alike


def _expert_ffn(config: Any) -> int:
    return first(config, "moe_intermediate_size", "intermediate_size")


def _shared_ffn(config: Any) -> int:
    names = ("shared_expert_intermediate_size", "shared_intermediate_size", "share_expert_dim")
    whole = first(config, *names, "moe_shared_expert_intermediate_size")
    if whole is not None:
        return whole
    of_models = ("n_shared_experts", "moe_num_shared_experts", "num_shared_expert")
    count = first(config, *of_models, "num_shared_experts", default=0)
    return count * _expert_ffn(config)


def _first_of(*attributes: str) -> Callable[[Any], int]:
    return lambda config: first(config, *attributes)


#: Dimension of a shape in the tables -> its size under a transformers configuration.
_DIMENSIONS: dict[str, Callable[[Any], int]] = {
    "vocab": lambda c: c.vocab_size,
    "positions": lambda c: c.max_position_embeddings,
    "hidden": lambda c: c.hidden_size,
    "ffn": _ffn,
    "head": head_size,
    "heads": lambda c: c.num_attention_heads,
    "kv_heads": lambda c: c.num_key_value_heads,
    "q": lambda c: size("heads*head", c),
    "kv": lambda c: size("kv_heads*head", c),
    "nope": lambda c: c.qk_nope_head_dim,
    "rope": lambda c: c.qk_rope_head_dim,
    "qk": lambda c: size("nope+rope", c),
    "v_head": lambda c: c.v_head_dim,
    "q_lora": lambda c: c.q_lora_rank or 0,
    "kv_lora": lambda c: c.kv_lora_rank,
    "indexer_heads": lambda c: c.indexer_heads,
    "indexer_head": lambda c: c.indexer_head_size,
    "streams": lambda c: c.hc_mult,
    "experts": experts,
    "expert_ffn": _expert_ffn,
    # What experts work on, where that is not the hidden state itself.
    "latent": lambda c: first(c, "moe_latent_size") or c.hidden_size,
    "shared_ffn": _shared_ffn,
    "labels": lambda c: len(c.id2label),
    "linear_k": lambda c: c.linear_num_key_heads * c.linear_key_head_dim,
    "linear_v": lambda c: c.linear_num_value_heads * c.linear_value_head_dim,
    "linear_key_heads": lambda c: c.linear_num_key_heads,
    "linear_heads": lambda c: c.linear_num_value_heads,
    "linear_head": lambda c: c.linear_value_head_dim,
    "conv": _first_of("linear_conv_kernel_dim", "conv_L_cache"),
    # Of Mamba-2.
    "ssm_heads": _first_of("mamba_n_heads", "mamba_num_heads", "num_heads"),
    "ssm_head": _first_of("mamba_d_head", "mamba_head_dim", "head_dim"),
    "ssm_inner": lambda c: size("ssm_heads*ssm_head", c),
    "ssm_groups": _first_of("mamba_n_groups", "n_groups"),
    "ssm_group": lambda c: size("ssm_inner", c) // size("ssm_groups", c),
    "ssm_state": _first_of("mamba_d_state", "ssm_state_size", "state_size"),
    "ssm_bc": lambda c: size("2*ssm_groups*ssm_state", c),
    "ssm_kernel": _first_of("mamba_d_conv", "conv_kernel"),
    "types": lambda c: c.type_vocab_size,
    "dense": lambda c: c.dense_size,
    "layers": lambda c: c.num_hidden_layers,
    # Of what each layer adds for a token, beside the embedding.
    "per_layer": lambda c: c.hidden_size_per_layer_input,
    "per_layer_vocab": lambda c: c.vocab_size_per_layer_input,
    # Of Gemma 3n's streams.
    "altup": lambda c: c.altup_num_inputs,
    "altup_others": lambda c: c.altup_num_inputs - 1,
    "laurel": lambda c: c.laurel_rank,
}


class _OfLayer:
    """A configuration whose sizes are those of one layer."""

    def __init__(self, config: Any, layer: int) -> None:
        sizes = config.sizes_by_layer
        own = {name: values[layer] for name, values in sizes.items() if layer < len(values)}
        vars(self).update(own, _config=config)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_config"], name)


def of_layer(config: Any, layer: int | None) -> Any:
    """The configuration as one layer has it: with its own of the sizes that layers differ in.

    These are in ``sizes_by_layer``: name of an attribute to its value in each layer.
    """
    if layer is None or not getattr(config, "sizes_by_layer", None):
        return config
    return _OfLayer(config, layer)


def cached_heads(config: Any, layer: int, on_npu: bool = False) -> tuple[int, int, int]:
    """Heads of a layer's keys, the size of a key, and that of a value; zeros if it keeps none.

    Args:
        on_npu: as its operators want them, keys and values of one size.
    """
    own = of_layer(config, layer)
    if not own.num_key_value_heads or _shares_kv(config, layer):
        return 0, 0, 0
    key = head_size(own)
    value = first(own, "v_head_dim") or key
    if on_npu:
        key = value = max(key, value)
    return own.num_key_value_heads, key, value


def size(words: str, config: Any) -> int:
    """The size of a dimension, a product or a sum of products: ``q``, ``2*ffn``, ``q+2*kv``."""
    return sum(
        prod(int(word) if word.isdigit() else _DIMENSIONS[word](config) for word in term.split("*"))
        for term in words.split("+")
    )


def is_sparse(config: Any, layer: int) -> bool:
    """True for a layer whose feed-forward network is a mixture of experts."""
    if not experts(config):
        return False
    chosen = first(config, "moe_layers")
    if chosen is not None:
        return layer in chosen
    kinds = first(config, "mlp_layer_types")
    if kinds is not None:
        return kinds[layer] == "sparse"
    names = ("first_k_dense_replace", "moe_layer_start_index", "num_dense_layers")
    start = first(config, *names, default=0)
    interval = first(config, "moe_layer_interval", "interleave_moe_layer_step", default=1)
    return layer >= start and (layer + 1) % interval == 0


def _shares_kv(config: Any, layer: int) -> bool:
    """True for a block that attends to the keys and values of one before it."""
    return layer >= config.num_hidden_layers - first(config, "num_kv_shared_layers", default=0)


def heads_of(config: Any, layer: int) -> tuple[int, int]:
    """Query heads and key-value heads of a layer; none of the latter if it does not attend."""
    own = of_layer(config, layer)
    return own.num_attention_heads, own.num_key_value_heads


def _has_type(*types: str) -> Callable[[Any, int], bool]:
    return lambda config, layer: layer_types(config)[layer] in types


def layer_types(config: Any) -> Sequence[str]:
    """Of each layer; Nemotron-H has letters for them."""
    return first(config, "hybrid_override_pattern") or config.layer_types


#: Kind of layer in the tables -> whether a layer of a model is of it.
_KINDS: dict[str, Callable[[Any, int], bool]] = {
    "dense": lambda config, layer: not is_sparse(config, layer),
    "sparse": is_sparse,
    "shared": lambda config, layer: _shared_ffn(config) > 0,
    # The engine's configurations say it in words of their own.
    "linear": _has_type("linear_attention", "mamba", "M"),
    "full": _has_type("full_attention", "attention", "*"),
    "normed_state": lambda config, layer: first(config, "mamba_rms_norm", default=True),
    "network": _has_type("-"),
    "experts": _has_type("E"),
    "latent": lambda config, layer: bool(first(config, "moe_latent_size")),
    "biased_router": lambda config, layer: config.use_expert_bias,
    "conv": _has_type("conv"),
    "sliding": _has_type("sliding_attention"),
    "own_kv": lambda config, layer: not _shares_kv(config, layer),
    "shared_kv": _shares_kv,
    # Gemma 4's layers without a window may have keys for values.
    "own_v": lambda config, layer: (
        not first(config, "attention_k_eq_v") or config.layer_types[layer] == "sliding_attention"
    ),
    # Of layers that differ in their sizes, of which some are none.
    "mixing": lambda config, layer: heads_of(config, layer)[0] > 0,
    "attending": lambda config, layer: heads_of(config, layer)[1] > 0,
    "matrix": lambda config, layer: heads_of(config, layer)[0] > 0 == heads_of(config, layer)[1],
    "residual_moe": lambda config, layer: config.residual_moe,
    "gated": lambda config, layer: config.gating == "per-element",
    "gated_heads": lambda config, layer: config.gating == "per-head",
    "feeding": lambda config, layer: of_layer(config, layer).intermediate_size > 0,
    "per_layer": lambda config, layer: bool(config.hidden_size_per_layer_input),
}


def is_kind(kind: str, config: Any, layer: int) -> bool:
    """True if a layer is of all kinds that are named, words of ``_KINDS``."""
    return all(_KINDS[word](config, layer) for word in kind.split())
