"""The ATB operators SGLang 0.5.23's ascend backend calls: they reach the device through libatb, not
through aclnn.

Source: the parameter checks of CANN's ascend-transformer-boost (ATB):
paged_attention_operation.cpp, self_attention_operation.cpp, flash_attention_tiling_dependency.cpp,
reshape_and_cache_operation.cpp, atb_ops_info.ini.

_npu_reshape_and_cache
    key (T, Nk, D) and value (T, Nk, Dv) into rows slot_indices of the caches, which are
    (blocks, block_size, Nk, D)
_npu_paged_attention
    decode: query (T, N, D), one a sequence, over context_lens[t] rows of its pages; out (T, N, Dv)
_npu_flash_attention_qlens
    prefill: query (sum of seq_len, N D), each sequence's queries the last of its context_lens rows,
    causal; what is already cached, context_lens - seq_len rows, is a multiple of 128

Lengths may be on the host or the device; ATB copies them to the host.
"""

from __future__ import annotations

from .attend import attend, causal, gather_pages
from .cache import store
from .rules import BF16, F16, I8, I32, Rules
from .view import viewed

PAGED = "ATB paged_attention_operation.cpp"
PREFIX = "ATB self_attention_operation.cpp, PREFIX_ENCODER"
CACHE = "ATB reshape_and_cache_operation.cpp"


@viewed
def reshape_and_cache(key, value, key_cache, value_cache, slot_indices) -> None:
    rule = Rules("atb::_npu_reshape_and_cache", CACHE)
    rule.dtype("key", key.t, F16, BF16, I8)
    rule.dtype("slot_indices", slot_indices.t, I32)
    store(rule, key, value, key_cache, value_cache, slot_indices, "slot_indices")


def _caches(rule, query_dtype, key_cache, value_cache, heads, kv_heads):
    """Rules of the caches; returns both as (blocks, block_size, kv_heads, D)."""
    rule.that(
        heads > 0 and kv_heads > 0 and heads % kv_heads == 0,
        "num_kv_heads",
        f"divides num_heads = {heads} (found {kv_heads})",
    )
    for argument, v in (("key_cache", key_cache), ("value_cache", value_cache)):
        rule.that(
            v.t.dtype == query_dtype,
            argument,
            f"dtype equals that of query, {query_dtype} (found {v.t.dtype})",
        )
        rule.contiguous(argument, v.t)
        rule.plain(argument, v)
    rule.that(
        key_cache.t.shape[:2] == value_cache.t.shape[:2],
        "value_cache",
        "blocks and block size equal those of key_cache",
    )
    pages = []
    for argument, v in (("key_cache", key_cache), ("value_cache", value_cache)):
        t = v.t
        if t.dim() == 3:
            rule.multiple(argument, "the last dimension", t.shape[2], kv_heads)
            t = t.view(*t.shape[:2], kv_heads, -1)
        rule.equal(argument, "the number of heads", t.shape[2], kv_heads)
        pages.append(t)
    return pages


def _lengths(rule, argument, lengths, batch, pages, table):
    rule.dtype(argument, lengths.t, I32)
    rule.shape(argument, lengths.t, (batch,))
    rule.values(argument, lengths.t, 0, table.t.shape[1] * pages[0].shape[1])
    return lengths.t.tolist()


def _blocks(rule, table, i, length, pages):
    used = table.t[i, : -(-length // pages[0].shape[1])]
    rule.values("block_table", used, 0, pages[0].shape[0] - 1)
    return table.t[i]


@viewed
def paged_attention(
    query,
    key_cache,
    value_cache,
    num_kv_heads,
    num_heads,
    scale_value,
    block_table,
    context_lens,
    out,
    *,
    workspace=None,
) -> None:
    table, lengths = block_table, context_lens
    rule = Rules("atb::_npu_paged_attention", PAGED)
    rule.dtype("query", query.t, F16, BF16)
    rule.ndim("query", query.t, 3)
    rule.ndim("key_cache", key_cache.t, 4)
    rule.ndim("value_cache", value_cache.t, 4)
    rule.equal("query", "the number of heads", query.t.shape[1], num_heads)
    pages = _caches(rule, query.t.dtype, key_cache, value_cache, num_heads, num_kv_heads)
    tokens, _, d = query.t.shape
    block_size, dv = pages[0].shape[1], pages[1].shape[3]
    rule.equal("key_cache", "the head size", pages[0].shape[3], d)
    rule.that(
        d <= 576 and dv <= 576, "key_cache", f"the head size is at most 576 (found {d} and {dv})"
    )
    rule.that(
        max(d, dv) <= 256 or block_size <= 128,
        "key_cache",
        f"the block size is at most 128 with heads of more than 256 (found {block_size})",
    )
    rule.undocumented(
        d % 16 == 0 and block_size % 16 == 0,
        "key_cache",
        f"head size {d} with block size {block_size}, not multiples of 16",
    )
    rule.dtype("block_table", table.t, I32)
    rule.that(
        table.t.dim() == 2 and table.t.shape[0] == tokens,
        "block_table",
        f"shape is ({tokens}, blocks) (found {tuple(table.t.shape)})",
    )
    context = _lengths(rule, "context_lens", lengths, tokens, pages, table)
    rule.equal("out", "the number of elements", out.t.numel(), tokens * num_heads * dv)
    rule.same_dtype("out", out.t, "query", query.t)
    flat = out.t.view(tokens, num_heads, dv)
    for i, length in enumerate(context):
        blocks = _blocks(rule, table, i, length, pages)
        k, v = (gather_pages(p, blocks, length) for p in pages)
        flat[i] = attend(query.t[i : i + 1], k, v, scale_value)[0][0].to(flat.dtype)


def _prefix_mask(rule, mask, query) -> None:
    rule.dtype("mask", mask.t, F16, BF16)
    rule.same_dtype("mask", mask.t, "query", query.t)
    rule.shape("mask", mask.t, (128, 128))
    low, high = mask.t.tril().abs().max().item(), mask.t[0, 1:].abs().min().item()
    rule.that(
        low == 0 and high > 0 and mask.t[-2, -1] != 0,
        "mask",
        "is zero on and below the diagonal and not zero above",
    )


def _prefix_lengths(rule, queries, context) -> None:
    for s, length in zip(queries, context, strict=False):
        rule.that(
            s <= length,
            "context_lens",
            f"no sequence has more queries than rows (found {s} and {length})",
        )
        rule.that(
            (length - s) % 128 == 0,
            "context_lens",
            f"what is cached already is a multiple of 128 rows (found {length - s})",
            "ATB flash_attention_tiling_dependency.cpp; torch_npu 2.13.0 documentation of "
            "npu_self_attention_prefix_encoder",
        )


@viewed
def flash_attention_qlens(
    query,
    key_cache,
    value_cache,
    block_table,
    mask,
    seq_len,
    context_lens,
    num_kv_heads,
    num_heads,
    scale_value,
    out,
) -> None:
    table, q_lengths, kv_lengths = block_table, seq_len, context_lens
    rule = Rules("atb::_npu_flash_attention_qlens", PREFIX)
    rule.dtype("query", query.t, F16, BF16)
    rule.ndim("query", query.t, 2, 3)
    rule.ndim("key_cache", key_cache.t, 3, 4)
    same = key_cache.t.dim() == value_cache.t.dim()
    rule.that(same, "value_cache", "has as many dimensions as key_cache")
    rule.multiple("query", "its width", query.t[0].numel(), num_heads)
    q = query.t.reshape(query.t.shape[0], num_heads, -1)
    pages = _caches(rule, query.t.dtype, key_cache, value_cache, num_heads, num_kv_heads)
    d, block_size, dv = q.shape[2], pages[0].shape[1], pages[1].shape[3]
    rule.equal("key_cache", "the head size", pages[0].shape[3], d)
    rule.that(
        d <= 128 and d % 16 == 0,
        "query",
        f"the head size is a multiple of 16, up to 128 (found {d})",
    )
    rule.equal("key_cache", "the block size", block_size, 128)
    _prefix_mask(rule, mask, query)
    rule.dtype("block_table", table.t, I32)
    rule.ndim("block_table", table.t, 2)
    batch = table.t.shape[0]
    queries = _lengths(rule, "seq_len", q_lengths, batch, pages, table)
    context = _lengths(rule, "context_lens", kv_lengths, batch, pages, table)
    _prefix_lengths(rule, queries, context)
    # The engine pads a batch behind its last sequence; rows there are left as they are.
    rule.that(
        sum(queries) <= q.shape[0],
        "seq_len",
        f"sums to at most the {q.shape[0]} rows of query (found {sum(queries)})",
    )
    rule.equal("out", "the number of elements", out.t.numel(), q.shape[0] * num_heads * dv)
    rule.same_dtype("out", out.t, "query", query.t)
    flat, start = out.t.view(q.shape[0], num_heads, dv), 0
    for i, (s, length) in enumerate(zip(queries, context, strict=False)):
        if s:
            blocks = _blocks(rule, table, i, length, pages)
            k, v = (gather_pages(p, blocks, length) for p in pages)
            flat[start : start + s] = attend(
                q[start : start + s], k, v, scale_value, causal(s, length)
            )[0].to(flat.dtype)
        start += s


# atb:: schema name -> implementation, arguments in schema order
TORCH_OPS = {
    "atb::_npu_reshape_and_cache": reshape_and_cache,
    "atb::_npu_paged_attention": paged_attention,
    "atb::_npu_flash_attention_qlens": flash_attention_qlens,
}
