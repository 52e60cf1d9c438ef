"""Writing rows into tensors in place: npu_scatter_nd_update_ and npu_scatter_pa_kv_cache.

Indices are not checked on a device; out of range they write elsewhere.
"""

from __future__ import annotations

from .products import P310, product
from .registry import aclnn
from .rules import BF16, BOOL, F16, F32, I8, I32, I64, OperatorMissing, Rules


@aclnn("aclnnScatterNdUpdate", "ttt")
def scatter_nd_update(target, indices, updates):
    """target[indices[.., 0], .., indices[.., a-1]] = updates[..]"""
    rule = Rules(
        "npu_scatter_nd_update_", "torch_npu 2.13.0 documentation of npu_scatter_nd_update_"
    )
    rule.dtype(
        "input",
        target.t,
        *((F32, F16, BOOL) if product() == P310 else (F32, F16, BOOL, BF16, I64, I8)),
    )
    rule.dtype("indices", indices.t, I32, I64)
    rule.same_dtype("updates", updates.t, "input", target.t)
    rule.ndim("input", target.t, 1, 8)
    for argument, v in (("input", target), ("indices", indices), ("updates", updates)):
        rule.plain(argument, v)
    rule.that(
        indices.t.dim() >= 2,
        "indices",
        f"has at least 2 dimensions (found shape {tuple(indices.t.shape)})",
    )
    a = indices.t.shape[-1]
    rule.that(
        1 <= a <= target.t.dim(),
        "indices",
        f"the last dimension is 1 to {target.t.dim()} (found {a})",
    )
    rule.shape("updates", updates.t, (*indices.t.shape[:-1], *target.t.shape[a:]))
    for d in range(a):
        rule.values("indices", indices.t[..., d], 0, target.t.shape[d] - 1)
    target.t[tuple(indices.t.long().unbind(-1))] = updates.t


@aclnn("aclnnScatterPaKvCache", "tttttttt" + "SS" + "II")
def scatter_pa_kv_cache(
    key,
    key_cache,
    slots,
    value,
    value_cache,
    compress_lens,
    compress_offsets,
    seq_lens,
    cache_mode,
    scatter_mode,
    strides,
    offsets,
):
    """key (T, heads, dim) to row slots[t] of key_cache (blocks, block_size, heads, dim);

    value likewise, its dim may differ.
    """
    name = "npu_scatter_pa_kv_cache"
    rule = Rules(name, "torch_npu 2.13.0 documentation of npu_scatter_pa_kv_cache")
    rule.that(
        cache_mode in (None, "Norm", "PA_NZ"),
        "cache_mode",
        f"is None, 'Norm' or 'PA_NZ' (found {cache_mode!r})",
    )
    if (
        cache_mode == "PA_NZ"
        or compress_lens is not None
        or seq_lens is not None
        or compress_offsets is not None
    ):
        raise OperatorMissing(name, f"cache_mode {cache_mode!r}, or compression")
    rule.dtype("key", key.t, F16, BF16, F32, I8)
    rule.dtype("slot_mapping", slots.t, I32, I64)
    rows = (("key", key), ("value", value), ("slot_mapping", slots))
    for argument, v in rows:
        rule.contiguous(argument, v.t)
    for argument, v in (*rows, ("key_cache", key_cache), ("value_cache", value_cache)):
        rule.plain(argument, v)
    # Repeated slots are documented to give either value; SGLang 0.5.23 pads a batch with slot 0, so
    # they are not refused.
    store(rule, key, value, key_cache, value_cache, slots, "slot_mapping")


def store(rule, key, value, key_cache, value_cache, slots, slots_name: str) -> None:
    """Rows of key and value to rows ``slots`` of the caches, with the rules of their shapes."""
    for argument, v in (("value", value), ("key_cache", key_cache), ("value_cache", value_cache)):
        rule.same_dtype(argument, v.t, "key", key.t)
    rule.ndim("key", key.t, 3)
    rule.ndim("value", value.t, 3)
    rule.ndim("key_cache", key_cache.t, 4)
    rule.ndim(slots_name, slots.t, 1)
    tokens, heads, width = key.t.shape
    blocks, block_size = key_cache.t.shape[:2]
    rule.shape("value", value.t, (tokens, heads, value.t.shape[2]))
    rule.shape("key_cache", key_cache.t, (blocks, block_size, heads, width))
    rule.shape("value_cache", value_cache.t, (blocks, block_size, heads, value.t.shape[2]))
    rule.shape(slots_name, slots.t, (tokens,))
    for argument, v in (("key_cache", key_cache), ("value_cache", value_cache)):
        rule.contiguous(argument, v.t)
    rule.values(slots_name, slots.t, 0, blocks * block_size - 1)
    for cache, rows in ((key_cache, key), (value_cache, value)):
        cache.t.view(-1, *rows.t.shape[1:])[slots.t.long()] = rows.t
