"""The rules of fused attention; attention.py says what it computes, and names the sources."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .attend import gather_pages
from .products import A5, product
from .rules import BF16, BOOL, F16, I8, I32, U8, OperatorMissing, Rules
from .view import View

DOC = "torch_npu 2.13.0 documentation of npu_fused_infer_attention_score"
CANN = "CANN aclnnFusedInferAttentionScoreV4.md"
CANN_950 = "CANN aclnnFusedInferAttentionScoreV5.md"
ENGINE = "SGLang 0.5.23 hardware_backend/npu/attention/ascend_backend.py"
MASK = 2048
#: D of queries over latent vectors.
LATENT = 512


@dataclass
class Call:
    """The arguments that are simulated, under one set of names for both versions."""

    name: str
    query: object
    keys: object
    values: object
    mask: object
    q_lengths: list | None
    kv_lengths: list | None
    block_table: object
    heads: int
    scale: float
    before: int
    after: int
    layout: str
    kv_heads: int
    sparse: int
    inner_precise: int
    block_size: int
    want_lse: bool
    out: object
    lse: object
    sink: object = None
    q_rope: object = None
    k_rope: object = None


@dataclass
class Sizes:
    """batch sequences of s queries of n heads of d numbers, and nk heads of keys."""

    batch: int
    s: int
    n: int
    nk: int
    d: int
    tnd: bool

    @property
    def decode(self) -> bool:
        """One query a sequence."""
        return self.s == 1 and not self.tnd


def check_tensors(rule: Rules, c: Call, query: View, key: View, value: View, out: View) -> None:
    tnd = c.layout == "TND"
    latent = c.q_rope is not None and query.t.shape[-1] == LATENT
    if query.t.dtype == I8 or key.t.dtype in (I8, I32):
        raise OperatorMissing(c.name, f"query {query.t.dtype} with key {key.t.dtype}")
    rule.dtype("query", query.t, F16, BF16)
    if tnd and not latent:
        rule.that(query.t.dtype == BF16, "query", "is bfloat16 in layout TND", CANN)
    for argument, v in (("key", key), ("value", value), ("attention_out", out)):
        rule.same_dtype(argument, v.t, "query", query.t)
    for argument, v in (("query", query), ("key", key), ("value", value)):
        # The engine hands over queries of DeepSeek as it splits them (forward_extend).
        rule.contiguous(argument, None if v is query and tnd and c.q_rope is not None else v.t)
        rule.plain(argument, v)


def sizes_of(rule: Rules, c: Call, query: View) -> Sizes:
    n, nk = c.heads, c.kv_heads or c.heads
    rule.range("num_heads", "it", n, 1, 256)
    rule.that(
        nk > 0 and n % nk == 0, "num_key_value_heads", f"divides num_heads = {n} (found {nk})"
    )
    rule.that(
        n // nk <= 64,
        "num_key_value_heads",
        f"num_heads is at most 64 times it (found {n} and {nk})",
    )
    sizes = _query_sizes(rule, c, query, n, nk)
    d, decode = sizes.d, sizes.decode
    rule.that(
        c.layout != "BNSD_BSND" or not decode,
        "input_layout",
        "BNSD_BSND is for more than one query a sequence",
    )
    rule.range("query", "B", sizes.batch, 1, 65536)
    rule.range("query", "D", d, 1, 512)
    if not decode:
        rule.multiple("query", "D", d, 16)
        rule.that(
            c.layout not in ("BSH", "BSND") or n * d < 65535,
            "query",
            f"N * D is less than 65535 (found {n * d})",
        )
    return sizes


def _query_sizes(rule: Rules, c: Call, query: View, n: int, nk: int) -> Sizes:
    tnd = c.layout == "TND"
    rule.ndim("query", query.t, 3 if c.layout in ("BSH", "TND") else 4)
    if tnd:
        rule.present("actual_seq_lengths", c.q_lengths, "is required in layout TND")
        batch, s = len(c.q_lengths), query.t.shape[0]
        n_found, d = query.t.shape[1:]
    elif c.layout == "BSH":
        batch, s, width = query.t.shape
        rule.multiple("query", "the last dimension", width, n)
        n_found, d = n, width // n
    elif c.layout == "BSND":
        batch, s, n_found, d = query.t.shape
    else:
        batch, n_found, s, d = query.t.shape
    rule.equal("query", "the number of heads", n_found, n)
    return Sizes(batch, s, n, nk, d, tnd)


def query_lengths(rule: Rules, c: Call, query: View, sizes: Sizes) -> list[int]:
    """Queries of each sequence."""
    batch, s = sizes.batch, sizes.s
    if sizes.tnd:
        total = query.t.shape[0]
        rule.range("query", "T", total, 1, 65536)
        ends = list(c.q_lengths)
        rule.that(
            all(a <= b for a, b in zip([0, *ends], ends, strict=False)),
            "actual_seq_lengths",
            f"are cumulated and do not decrease (found {ends})",
        )
        rule.that(
            ends[-1] <= total, "actual_seq_lengths", f"end within T = {total} (found {ends[-1]})"
        )
        return [b - a for a, b in zip([0, *ends], ends, strict=False)]
    q_lengths = [s] * batch
    if c.q_lengths and not sizes.decode:
        rule.that(
            len(c.q_lengths) == 1 or len(c.q_lengths) >= batch,
            "actual_seq_lengths",
            f"has 1 or at least {batch} values (found {len(c.q_lengths)})",
        )
        q_lengths = (list(c.q_lengths) * batch if len(c.q_lengths) == 1 else list(c.q_lengths))[
            :batch
        ]
        rule.that(
            all(0 <= length <= s for length in q_lengths),
            "actual_seq_lengths",
            f"lie in [0, S = {s}] (found {q_lengths})",
        )
    return q_lengths


def check_value_width(rule: Rules, sizes: Sizes, dv: int, table: torch.Tensor | None) -> None:
    """Of values in layout TND."""
    d = sizes.d
    # The wheel's text names 128 and 192; the engine also calls the operator with 256
    # (_can_use_tnd).
    rule.that(
        (d, dv) in ((128, 128), (192, 192), (192, 128), (256, 256)),
        "query",
        f"D of query and value in layout TND are 128, 192, 256, or 192 and 128 (found {d} and "
        f"{dv})",
        f"{CANN}; {ENGINE}",
    )
    rule.that(
        (d, dv) != (192, 192) or (sizes.n == sizes.nk and table is None),
        "value",
        "D of value is not 192 with grouped heads or pages",
        CANN,
    )


def paged(rule: Rules, c: Call, key: View, value: View, table: torch.Tensor, sizes: Sizes):
    """Rules of keys and values in pages; returns both as (blocks, block_size, heads, D)."""
    batch, nk, d, tnd = sizes.batch, sizes.nk, sizes.d, sizes.tnd
    rule.dtype("block_table", table, I32)
    rule.ndim("block_table", table, 2)
    rule.equal("block_table", "the first dimension, the batch", table.shape[0], batch)
    rule.present("actual_seq_lengths_kv", c.kv_lengths, "is required with block_table")
    if sizes.decode or tnd:
        largest, step = (1024, 16) if tnd else (512, 16)
        rule.that(
            16 <= c.block_size <= largest and c.block_size % step == 0,
            "block_size",
            f"is a multiple of 16, up to {largest} (found {c.block_size})",
            CANN if tnd else DOC,
        )
    else:
        rule.that(
            128 <= c.block_size <= 512 and c.block_size % 128 == 0,
            "block_size",
            f"is 128, 256, 384 or 512 with several queries a sequence (found {c.block_size})",
        )
    rule.ndim("key", key.t, 3, 3 if c.layout in ("BSH", "BSND") else 4)
    rule.equal("value", "the number of blocks", value.t.shape[0], key.t.shape[0])
    pages = []
    for argument, v in (("key", key), ("value", value)):
        rule.that(
            v.t.dim() == key.t.dim(), argument, "key and value have the same number of dimensions"
        )
        if v.t.dim() == 3:
            blocks, size, width = v.t.shape
            rule.that(width <= 65535, argument, f"Nk * D is at most 65535 (found {width})")
            rule.equal(argument, "the block size", size, c.block_size)
            rule.multiple(argument, "the last dimension", width, nk)
            pages.append(v.t.view(blocks, size, nk, width // nk))
        else:
            rule.that(
                v.t.shape[1:3] == (nk, c.block_size),
                argument,
                f"shape is (blocks, {nk}, {c.block_size}, D) (found {tuple(v.t.shape)})",
            )
            pages.append(v.t.transpose(1, 2))
        rule.that(
            v.t.numel() <= 2**31 - 1,
            argument,
            f"its number of elements fits in int32 (found {v.t.numel()})",
        )
    rule.equal("key", "D", pages[0].shape[3], d)
    rule.that(tnd or pages[1].shape == pages[0].shape, "value", "shape equals that of key")
    return pages


def sequence(rule: Rules, c: Call, key: View, value: View, pages, table, i: int, sizes: Sizes):
    """Keys (L, nk, D) and values (L, nk, Dv) of sequence i."""
    batch, nk, lengths = sizes.batch, sizes.nk, c.kv_lengths
    if pages is not None:
        length = _length(rule, lengths, i, batch)
        capacity = table.shape[1] * c.block_size
        rule.that(
            0 <= length <= capacity,
            "actual_seq_lengths_kv",
            f"lie in [0, {capacity}], what the block table holds: {table.shape[1]} blocks of "
            f"{c.block_size} (found {length})",
        )
        used = table[i, : -(-length // c.block_size)]
        rule.values("block_table", used, 0, pages[0].shape[0] - 1)
        return tuple(gather_pages(p, table[i], length) for p in pages)
    if sizes.tnd:
        return _of_joined(rule, key, value, i, lengths, sizes)
    if c.layout == "BSH":
        rule.ndim("key", key.t, 3)
        k, v = (x.t[i].unflatten(-1, (nk, -1)) for x in (key, value))
    elif c.layout == "BSND":
        rule.ndim("key", key.t, 4)
        k, v = key.t[i], value.t[i]
    else:
        rule.ndim("key", key.t, 4)
        k, v = key.t[i].transpose(0, 1), value.t[i].transpose(0, 1)
    rule.equal("key", "the batch", key.t.shape[0], batch)
    rule.equal("key", "the number of heads", k.shape[1], nk)
    rule.that(value.t.shape == key.t.shape, "value", "shape equals that of key")
    if lengths:
        length = _length(rule, lengths, i, batch)
        rule.that(
            0 <= length <= k.shape[0],
            "actual_seq_lengths_kv",
            f"lie in [0, {k.shape[0]}] (found {length})",
        )
        k, v = k[:length], v[:length]
    return k, v


def _of_joined(rule: Rules, key: View, value: View, i: int, lengths, sizes: Sizes):
    """As :func:`sequence`, in layout TND without pages."""
    batch, nk = sizes.batch, sizes.nk
    rule.present("actual_seq_lengths_kv", lengths, "is required in layout TND")
    rule.equal("actual_seq_lengths_kv", "the number of values", len(lengths), batch)
    first, last = ([0, *lengths])[i : i + 2]
    rule.that(
        0 <= first <= last <= key.t.shape[0],
        "actual_seq_lengths_kv",
        f"are cumulated, do not decrease and end within {key.t.shape[0]} (found {list(lengths)})",
    )
    rule.that(
        key.t.dim() == 3 and key.t.shape[1] == nk,
        "key",
        f"shape is (T, {nk}, D) (found {tuple(key.t.shape)})",
    )
    return key.t[first:last], value.t[first:last]


def _length(rule: Rules, lengths, i: int, batch: int) -> int:
    rule.that(
        len(lengths) == 1 or len(lengths) >= batch,
        "actual_seq_lengths_kv",
        f"has 1 or at least {batch} values (found {len(lengths)})",
    )
    return lengths[min(i, len(lengths) - 1)]


def check_mask(rule: Rules, c: Call, mask, q_lengths, kv, table, sizes: Sizes) -> None:
    batch = sizes.batch
    if mask is not None:
        rule.dtype("atten_mask", mask, BOOL, I8, U8)
        rule.contiguous("atten_mask", mask)
        rule.that(
            product() != A5 or mask.dim() > 2 or c.sparse in (2, 3, 4),
            "atten_mask",
            "has 3 or 4 dimensions with sparse_mode 0 and 1 on Ascend 950",
            CANN_950,
        )
    if not sizes.decode:
        _mask_rules(rule, c, mask, q_lengths, kv, batch)
        rule.range("inner_precise", "it", c.inner_precise, 0, 0 if sizes.tnd else 3)
    else:
        rule.range("inner_precise", "it where S is 1", c.inner_precise, 0, 1)
        if mask is not None and c.sparse not in (2, 3, 4):
            longest = max(k.shape[0] for k, _ in kv)
            needed = table.shape[1] * c.block_size if table is not None else longest
            rule.that(
                mask.shape[-1] >= needed and mask.numel() // mask.shape[-1] in (1, batch),
                "atten_mask",
                f"has one row, or one a sequence, and its last dimension is at least {needed} "
                f"(found {tuple(mask.shape)})",
            )


def _mask_rules(rule, c, mask, q_lengths, kv, batch):
    rule.one_of("sparse_mode", c.sparse, *((0, 3, 4) if c.layout == "TND" else range(5)))
    if c.sparse in (2, 3, 4):
        rule.present("atten_mask", mask, "is required with sparse_mode 2, 3 and 4")
        rule.shape("atten_mask", mask, (MASK, MASK), (1, MASK, MASK), (1, 1, MASK, MASK))
        square = mask.view(MASK, MASK)
        corners = [
            bool(square[i, j])
            for i, j in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0), (-1, -1), (-2, -1))
        ]
        rule.that(
            corners == [False, True, False, True, False, False, True],
            "atten_mask",
            "is one above the diagonal and zero on and below it",
        )
        if c.sparse == 3:
            for q, (k, _) in zip(q_lengths, kv, strict=False):
                rule.that(
                    # The engine captures a check of drafted tokens with sequences without keys.
                    q <= k.shape[0] or not k.shape[0],
                    "actual_seq_lengths",
                    f"with sparse_mode 3 no sequence has more queries than keys (found {q} and "
                    f"{k.shape[0]})",
                )
        return
    rule.that(c.sparse != 1 or mask is not None, "atten_mask", "is required with sparse_mode 1")
    if mask is not None:
        longest = max(k.shape[0] for k, _ in kv)
        rule.that(
            mask.shape[-2] >= max(q_lengths)
            and mask.shape[-1] >= longest
            and mask.numel() // (mask.shape[-1] * mask.shape[-2]) in (1, batch),
            "atten_mask",
            f"shape is (Q, K), (1, Q, K), (1, 1, Q, K) or (B, 1, Q, K) with Q >= {max(q_lengths)}, "
            f"K >= {longest} (found {tuple(mask.shape)})",
        )
        rule.that(c.layout != "TND", "atten_mask", "layout TND takes none with sparse_mode 0", CANN)
