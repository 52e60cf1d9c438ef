"""Around attention over latent vectors (MLA): npu_kv_rmsnorm_rope_cache, npu_transpose_batchmatmul,
npu_attention_update, and the rules of rope parts of attention.py.

Sources: CANN's aclnnKvRmsNormRopeCache.md and aclnnTransposeBatchMatMul.md (ops-nn),
aclnnAttentionUpdate.md with the README beside it (ops-transformer), torch_npu 2.13.0's
documentation, and SGLang 0.5.23's hardware_backend/npu/modules/deepseek_v2_attention_mla_npu.py,
which calls them on A2 and A3.

npu_kv_rmsnorm_rope_cache
    kv (B, 1, S, 576): the first 512 numbers normed and times gamma, the last 64 turned as
    npu_interleave_rope turns them, each into row index[b S + s] of its cache, (blocks, block_size,
    1, 64) and (blocks, block_size, 1, 512); -1 leaves the caches alone
npu_transpose_batchmatmul
    out[m, b] = x1[m, b] @ x2[b]
npu_attention_update
    attention to parts of the keys, joined: each local_out (rows, D) weighs as much as its softmax
    summed up to, exp(lse) of lse (rows,)

Not simulated, and refused by name: cache modes but PA_BNSD, int8 caches, scales, split batches.
"""

from __future__ import annotations

import torch

from .attend import gather_pages
from .attention_rules import CANN, LATENT, Call, Sizes
from .products import A5, product
from .registry import aclnn
from .rope import rotate
from .rules import BF16, F16, F32, I64, OperatorMissing, Rules
from .view import View, view, views

NORM, TURNED = 512, 64
#: The most queries over latent vectors that a sequence may have.
LATENT_QUERIES = 16


@aclnn("aclnnKvRmsNormRopeCache", "ttttttt" + "tttt" + "dSb" + "tt")
def kv_rmsnorm_rope_cache(
    kv,
    gamma,
    cos,
    sin,
    index,
    k_cache,
    ckv_cache,
    k_scale,
    ckv_scale,
    k_offset,
    ckv_offset,
    epsilon,
    mode,
    outputs,
    k_out,
    ckv_out,
):
    mode = mode.decode() if isinstance(mode, bytes) else mode
    name = "npu_kv_rmsnorm_rope_cache"
    if mode != "PA_BNSD":
        raise OperatorMissing(name, f"cache_mode {mode!r}")
    if any(scale is not None for scale in (k_scale, ckv_scale, k_offset, ckv_offset)):
        raise OperatorMissing(name, "scales of int8 caches")
    rule = Rules(name, "CANN aclnnKvRmsNormRopeCache.md")
    rule.dtype("kv", kv.t, F16, BF16)
    rule.ndim("kv", kv.t, 4)
    b, n, s, d = kv.t.shape
    rule.equal("kv", "N", n, 1)
    rule.equal("kv", "D", d, NORM + TURNED)
    for argument, v in (("gamma", gamma), ("cos", cos), ("sin", sin)):
        rule.same_dtype(argument, v.t, "kv", kv.t)
    rule.shape("gamma", gamma.t, (NORM,))
    rule.shape("cos", cos.t, (b, 1, s, TURNED), (b, 1, 1, TURNED))
    rule.shape("sin", sin.t, cos.t.shape)
    _cache_rules(rule, kv, index, k_cache, ckv_cache)
    kept = index.t[index.t >= 0]
    # The engine's padding rows all go to the reserved first slot.
    own = kept[kept > 0]
    rule.that(own.unique().numel() == own.numel(), "index", "no two rows are the same")

    low, high = kv.t.float().split([NORM, TURNED], -1)
    low = low * torch.rsqrt(low.square().mean(-1, keepdim=True) + epsilon) * gamma.t.float()
    high = torch.cat((high[..., 0::2], high[..., 1::2]), -1)
    high = high * cos.t.float() + rotate(high, "half") * sin.t.float()
    for rows, cache, out in ((high, k_cache, k_out), (low, ckv_cache, ckv_out)):
        rows = rows.to(kv.t.dtype)
        cache.t.view(-1, rows.shape[-1])[kept] = rows.reshape(b * s, -1)[index.t >= 0]
        if outputs:
            out.t.copy_(rows)


def _cache_rules(rule, kv, index, k_cache, ckv_cache) -> None:
    rule.dtype("index", index.t, I64)
    rule.shape("index", index.t, (kv.t.shape[0] * kv.t.shape[2],))
    rule.ndim("k_cache", k_cache.t, 4)
    blocks, block_size = k_cache.t.shape[:2]
    for argument, v, width in (("k_cache", k_cache, TURNED), ("ckv_cache", ckv_cache, NORM)):
        rule.same_dtype(argument, v.t, "kv", kv.t)
        rule.shape(argument, v.t, (blocks, block_size, 1, width))
        rule.contiguous(argument, v.t)
    rule.multiple("k_cache", "the block size", block_size, 16)
    rule.values("index", index.t, -1, blocks * block_size - 1)


@aclnn("aclnnTransposeBatchMatMul", "tttt" + "III" + "c" + "w" + "t")
def transpose_batchmatmul(x1, x2, bias, scale, perm_x1, perm_x2, perm_y, _math, split, out):
    name = "npu_transpose_batchmatmul"
    if scale is not None or split != 1:
        raise OperatorMissing(name, "scale, batch_split_factor")
    rule = Rules(name, "CANN aclnnTransposeBatchMatMul.md")
    rule.absent("bias", bias, "is reserved")
    rule.dtype("input", x1.t, F16, BF16, F32)
    rule.same_dtype("weight", x2.t, "input", x1.t)
    rule.ndim("input", x1.t, 3)
    rule.ndim("weight", x2.t, 3)
    rule.one_of("perm_x1", list(perm_x1 or [0, 1, 2]), [0, 1, 2], [1, 0, 2])
    rule.one_of("perm_x2", list(perm_x2 or [0, 1, 2]), [0, 1, 2], [0, 2, 1])
    rule.one_of("perm_y", list(perm_y or [1, 0, 2]), [1, 0, 2])
    a, b = x1.t.permute(perm_x1 or (0, 1, 2)), x2.t.permute(perm_x2 or (0, 1, 2))
    rule.equal("weight", "the batch", b.shape[0], a.shape[0])
    rule.equal("weight", "K", b.shape[1], a.shape[2])
    rule.range("input", "B", a.shape[0], 1, 65535)
    rule.range("weight", "N", b.shape[2], 1, 65535)
    rule.range("input", "K", a.shape[2], 1, 65535)
    out.t.copy_((a.float() @ b.float()).transpose(0, 1))


@aclnn("aclnnAttentionUpdate", "TTitt")
def attention_update(lse, local_out, update_type, out, lse_out):
    rule = Rules("npu_attention_update", "CANN aclnnAttentionUpdate.md")
    lse, local_out = views(lse), views(local_out)
    most = 16 if product() == A5 else 128
    rule.range("lse", "the number of tensors", len(lse), 1, most)
    rule.equal("local_out", "the number of tensors", len(local_out), len(lse))
    rule.one_of("update_type", update_type, 0, 1)
    if update_type:
        rule.present("lse_out", lse_out, "is required with update_type 1")
    else:
        rule.absent("lse_out", lse_out, "goes with update_type 1")
    first = local_out[0].t
    rule.dtype("local_out", first, F32, F16, BF16)
    rule.ndim("local_out", first, 2)
    rows, size = first.shape
    rule.range("local_out", "D", size, 8, 512)
    rule.multiple("local_out", "D", size, 8)
    for argument, tensors, shape, dtype in (
        ("lse", lse, (rows,), F32),
        ("local_out", local_out, (rows, size), first.dtype),
        ("out", [out], (rows, size), first.dtype),
        ("lse_out", [lse_out] if update_type else [], (rows,), F32),
    ):
        for v in tensors:
            rule.dtype(argument, v.t, dtype)
            rule.shape(argument, v.t, shape)
            rule.contiguous(argument, v.t)
            rule.plain(argument, v)

    sums = torch.stack([v.t for v in lse])
    total = sums.logsumexp(0)
    weights = (sums - total).exp().unsqueeze(-1)
    out.t.copy_((weights * torch.stack([v.t.float() for v in local_out])).sum(0))
    if update_type:
        lse_out.t.copy_(total)


def rope_parts(rule: Rules, c: Call, query: View, key: View, table, sizes: Sizes):
    """The queries' rope parts, shaped like them, and of each sequence the keys', (L, nk, 64)."""
    batch, n, nk, d = sizes.batch, sizes.n, sizes.nk, sizes.d
    rule.present("query_rope", c.q_rope, "is given with key_rope")
    rule.present("key_rope", c.k_rope, "is given with query_rope")
    q_rope, k_rope = view(c.q_rope), view(c.k_rope)
    for argument, v, of in (("query_rope", q_rope, query), ("key_rope", k_rope, key)):
        rule.same_dtype(argument, v.t, "query", query.t)
        rule.contiguous(argument, None if v is q_rope and c.layout == "TND" else v.t)
        rule.ndim(argument, v.t, of.t.dim())
    rule.shape("query_rope", q_rope.t, (*query.t.shape[:-1], 64))
    if c.layout == "TND" and table is None:
        rule.equal("query", "D with rope parts in layout TND", d, 128)
        rule.equal("num_key_value_heads", "it with rope parts in layout TND", nk, n)
        rule.shape("key_rope", k_rope.t, (*key.t.shape[:-1], 64))
        starts = [0, *c.kv_lengths]
        parts = [k_rope.t[a:b] for a, b in zip(starts, starts[1:], strict=False)]
        return q_rope.t, parts
    if c.layout == "TND":
        s = [b - a for a, b in zip([0, *c.q_lengths], c.q_lengths, strict=False)]
        rule.that(
            all(1 <= length <= LATENT_QUERIES for length in s),
            "query",
            f"has 1 to {LATENT_QUERIES} queries a sequence over latent vectors (found {s})",
            CANN,
        )
        rule.equal("sparse_mode", "it with several queries over latent vectors", c.sparse, 3)
        rule.absent("softmax_lse_flag", c.want_lse or None, "over latent vectors")
    elif not (c.layout == "BSND" and sizes.decode and c.sparse == 0 and c.mask is None):
        raise OperatorMissing(c.name, f"rope parts in layout {c.layout}, S {query.t.shape[1]}")
    rule.present("block_table", table, "is required with rope parts of latent vectors")
    rule.equal("query", "D with rope parts over pages", d, LATENT)
    rule.equal("num_key_value_heads", "it with rope parts over pages", nk, 1)
    # The wheel's text names 32, 64 and 128; the engine pads to any power of two.
    rule.one_of("num_heads", n, 1, 2, 4, 8, 16, 32, 64, 128)
    rule.one_of("block_size", c.block_size, 16, 128)
    rule.shape("key_rope", k_rope.t, (*key.t.shape[:-1], 64))
    pages = k_rope.t.unsqueeze(2) if k_rope.t.dim() == 3 else k_rope.t.transpose(1, 2)
    lengths = c.kv_lengths if len(c.kv_lengths) >= batch else list(c.kv_lengths) * batch
    return q_rope.t, [gather_pages(pages, table[i], lengths[i]) for i in range(batch)]
