"""Which layers have sliding-window attention, and other attributes that need several keys."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ascend_gguf.architectures.base import Derivation
from ascend_gguf.architectures.metadata import Attributes, number, reads
from ascend_gguf.errors import DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile

FULL, SLIDING = "full_attention", "sliding_attention"

_ONE_GROUP = {"n_group": 1, "topk_group": 1}


def sliding_unless(every: int, first: bool = False) -> Derivation:
    """``layer_types``: the file's pattern, or else full attention in every n-th layer.

    With ``first`` it is the first of n layers, else the last.

    A model without a window has full attention in all layers.
    """

    @reads("attention.sliding_window_pattern")
    def derive(file: GGUFFile, attributes: Attributes) -> Attributes:
        layers = attributes["num_hidden_layers"]
        pattern = file.arch_field("attention.sliding_window_pattern", None)
        if not attributes.get("sliding_window"):
            sliding = [False] * layers
        elif isinstance(pattern, np.ndarray):
            sliding = flags_of_layers(file, "attention.sliding_window_pattern", layers)
        else:
            # Zero means no full attention at all, as in llama.cpp.
            step = number(file, "attention.sliding_window_pattern", least=0)
            step = (every if step is None else step) or layers + 1
            sliding = [(layer + (not first)) % step != 0 for layer in range(layers)]
        types = [SLIDING if slides else FULL for slides in sliding]
        return {"layer_types": types, "sliding_window": attributes.get("sliding_window") or None}

    return derive


def flags_of_layers(file: GGUFFile, key: str, layers: int) -> list[bool]:
    """True or false for each layer; all true if the file does not say."""
    pattern = np.atleast_1d(file.arch_field(key, [True] * layers))
    blocks = file.metadata.get(f"{file.architecture}.block_count")
    if len(pattern) not in (layers, blocks) or not np.isin(pattern, (0, 1)).all():
        raise file.error(
            "invalid pattern of layers",
            key,
            found=f"{len(pattern)} values: {pattern.tolist()[:8]}",
            expected=f"true or false for each of {layers} layers",
        )
    return [bool(flag) for flag in pattern[:layers]]


def each_layer(attributes: Attributes, name: str) -> list[Any]:
    """The value of a size in each layer."""
    own = attributes.get("sizes_by_layer", {}).get(name)
    layers = attributes["num_hidden_layers"]
    return own[:layers] if own else [attributes[name]] * layers


def own_sizes(attributes: Attributes, **sizes: list[Any]) -> Attributes:
    """``sizes_by_layer``, with these where layers differ in them."""
    found = {name: values for name, values in sizes.items() if len(set(values)) > 1}
    found = attributes.get("sizes_by_layer", {}) | found
    return {"sizes_by_layer": found} if found else {}


def of_each_type(file: GGUFFile, attributes: Attributes, name: str, key: str) -> dict[str, Any]:
    """The value of a size by the type of layer; that of the other if there are none of a type."""
    values, types = each_layer(attributes, name), attributes["layer_types"]
    found = {}
    for kind in (FULL, SLIDING):
        own = {value for value, type_ in zip(values, types, strict=True) if type_ == kind}
        if len(own) > 1:
            raise file.error(
                "the heads cannot be shared so",
                key,
                found=sorted(own),
                expected=f"one number for all layers of {kind}",
            )
        found[kind] = own.pop() if own else None
    return {kind: found[kind] or found[other] for kind, other in ((FULL, SLIDING), (SLIDING, FULL))}


def numbers_of_layers(file: GGUFFile, key: str, layers: int) -> list[float]:
    """A number of at least zero for each layer; zeros if the file has none."""
    value = file.arch_field(key, 0.0)
    blocks = file.metadata.get(file.key("block_count"))
    values = value.tolist() if isinstance(value, np.ndarray) else [value] * layers
    if len(values) not in (layers, blocks) or not all(
        type(one) in (int, float) and 0 <= one < math.inf for one in values
    ):
        expected = f"a number of at least 0 for each of {layers} layers"
        raise file.error("invalid values", key, found=f"{values!s:.80}", expected=expected)
    return [float(one) for one in values[:layers]]


def dense_layers(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``mlp_layer_types``, of the first layers that are dense."""
    layers, dense = attributes["num_hidden_layers"], attributes["first_k_dense_replace"]
    return {"mlp_layer_types": ["dense" if i < dense else "sparse" for i in range(layers)]}


def attends_where_heads(attention: str, other: str) -> Derivation:
    """``layer_types``: ``other`` where a layer has no KV heads; else they have the same number."""

    @reads("attention.head_count_kv")
    def derive(file: GGUFFile, attributes: Attributes) -> Attributes:
        layers = attributes["num_hidden_layers"]
        heads = np.atleast_1d(file.arch_field("attention.head_count_kv"))
        values = heads.tolist()
        distinct = set(values) - {0}
        if heads.dtype.kind not in "iu" or len(values) < layers or len(distinct) != 1:
            raise _no_hybrid(file, layers, values)
        found = distinct.pop()
        if found < 1 or 0 not in values[:layers] or attributes["num_attention_heads"] % found:
            raise _no_hybrid(file, layers, values)
        types = [attention if count else other for count in values[:layers]]
        return {"layer_types": types, "num_key_value_heads": found}

    return derive


def _no_hybrid(file: GGUFFile, layers: int, values: list[Any]) -> GGUFError:
    return file.error(
        "the model needs layers with attention, of equal heads, and layers without",
        "attention.head_count_kv",
        found=f"{len(values)} values: {values[:8]}",
        expected=f"for each of {layers} layers zero, or one number that query heads are a multiple "
        "of",
    )


def shared_count(attribute: str, default: int = 0) -> Derivation:
    """How many shared experts: by their total width, as in llama.cpp, or else by their number."""

    @reads("expert_shared_feed_forward_length")
    def derive(file: GGUFFile, attributes: Attributes) -> Attributes:
        one = attributes.get("moe_intermediate_size") or attributes["intermediate_size"]
        width = number(file, "expert_shared_feed_forward_length", least=0)
        count = number(file, "expert_shared_count", least=0) if width is None else width // one
        return {attribute: default if count is None else count}

    return derive


def has_tensor(attribute: str, *tensors: str) -> Derivation:
    """An attribute that is true if the file has one of the tensors."""
    return lambda file, attributes: {attribute: any(name in file.tensors for name in tensors)}


def no_grouped_heads(file: GGUFFile, attributes: Attributes) -> Attributes:
    """Nothing; refuse fewer KV heads than query heads, which the engine's model does not know."""
    heads, kv_heads = attributes["num_attention_heads"], attributes["num_key_value_heads"]
    if heads != kv_heads:
        raise file.error(
            "SGLang's model has as many KV heads as query heads",
            "attention.head_count_kv",
            found=kv_heads,
            expected=heads,
            hint=None,
        )
    return {}


def query_scale(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``attention_multiplier``; if the file lacks it, 1 / sqrt(head size)."""
    head = attributes["hidden_size"] // attributes["num_attention_heads"]
    return {"attention_multiplier": attributes.get("attention_multiplier", head**-0.5)}


def expert_width(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``moe_intermediate_size`` of files before June 2024: total width / experts per token."""
    if "moe_intermediate_size" in attributes:
        return {}
    whole = number(file, "feed_forward_length", required=True)
    return {"moe_intermediate_size": whole // attributes["num_experts_per_tok"]}


def groups(file: GGUFFile, attributes: Attributes) -> Attributes:
    """``n_group`` and ``topk_group``: one group if the file has none, or if a token uses all.

    A group is ranked by its two best experts, so it needs two.
    """
    count, used = attributes.get("n_group", 1), attributes.get("topk_group", 1)
    experts = number(file, "expert_count", required=True)
    chosen = number(file, "expert_used_count", required=True)
    size = experts // count
    if experts % count or used > count or (count > 1 and (size < 2 or chosen > used * size)):
        raise file.error(
            "invalid groups of experts",
            "expert_group_count",
            found=f"{count} groups, {used} of them for a token; {experts} experts, {chosen} of "
            "them for a token",
            expected="groups of equal size with at least two experts, at most all groups for a "
            "token, and in these groups as many experts as a token needs",
            hint=DOWNLOAD_AGAIN,
        )
    return {"n_group": count, "topk_group": used} if used < count else _ONE_GROUP
