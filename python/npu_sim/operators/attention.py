"""npu_fused_infer_attention_score and its v2: attention over whole keys and values, or over pages
of a cache.

Sources: torch_npu 2.13.0's documentation of both (DOC), CANN's aclnnFusedInferAttentionScoreV4.md
(CANN), and where these two leave open or contradict what runs in production, SGLang 0.5.23's
hardware_backend/npu/attention/ascend_backend.py (ENGINE).

    layout     query          out            keys without pages   keys in pages
    BSH        (B, S, N D)    as query       (B, L, Nk D)         flat
    BSND       (B, S, N, D)   as query       (B, L, Nk, D)        flat
    BNSD       (B, N, S, D)   as query       (B, Nk, L, D)        flat or by head
    BNSD_BSND  as BNSD        (B, S, N, D)   as BNSD              flat or by head
    TND        (T, N, D)      (T, N, Dv)     (T', Nk, D)          flat or by head

flat: (blocks, block_size, Nk D); by head: (blocks, Nk, block_size, D).  In TND lengths are
cumulated, those of keys in pages are not.

    sparse_mode 0   the mask given, or none, between pre_tokens and next_tokens
                1   the mask given
                2   causal from the upper left
                3   causal from the lower right: the queries are the last of the keys
                4   a band around the lower right, pre_tokens and next_tokens wide

2 to 4 need the 2048 x 2048 mask of ones above the diagonal.  Where S is 1 the mode has no effect.

Not simulated, and refused by name: int8 and int4 keys, output quantisation, pse_shift, left
padding, shared prefixes, NTD layouts, tree masks, rope parts of several queries over pages but in
layout TND.

Rope parts (MLA) are the last 64 numbers of queries and keys, given apart from the first 512 (over
pages, of one head) or 128 (layout TND without pages).  The rules are in attention_rules.py, those
of rope parts in latent.py.
"""

from __future__ import annotations

import torch

from .attend import attend
from .attention_rules import (
    CANN,
    DOC,
    LATENT,
    Call,
    Sizes,
    check_mask,
    check_tensors,
    check_value_width,
    paged,
    query_lengths,
    sequence,
    sizes_of,
)
from .latent import rope_parts
from .registry import aclnn
from .rules import OperatorMissing, Rules
from .view import View, tensor, view, views

LAYOUTS = ("BSH", "BSND", "BNSD", "BNSD_BSND", "TND")


def _hidden(call, mask, i, queries, keys, decode):
    """(queries, keys) bool, True where sequence i's query may not look, or None for everywhere."""
    if decode:  # modes, pre_tokens and next_tokens have no effect; the square mask says nothing
        return (
            None
            if mask is None or call.sparse in (2, 3, 4)
            else mask.view(-1, mask.shape[-1])[min(i, mask.numel() // mask.shape[-1] - 1), :keys]
            .bool()
            .unsqueeze(0)
        )
    row, column = torch.arange(queries).unsqueeze(1), torch.arange(keys)
    last = row + keys - queries
    if call.sparse == 2:
        return column > row
    if call.sparse == 3:
        return column > last
    if call.sparse == 4:
        return (column < last - call.before) | (column > last + call.after)
    if mask is None:
        return None
    full = mask.view(-1, *mask.shape[-2:])
    hidden = full[min(i, full.shape[0] - 1)][:queries, :keys].bool()
    return (
        hidden
        if call.sparse == 1
        else hidden | (column < row - call.before) | (column > row + call.after)
    )


def fused_attention(c: Call) -> None:
    rule = Rules(c.name, DOC)
    query, key, value, out = view(c.query), views(c.keys), views(c.values), view(c.out)
    rule.that(
        len(key) == len(value) == 1,
        "key",
        f"key and value are one tensor each (found {len(key)} and {len(value)})",
    )
    key, value = key[0], value[0]
    if c.layout not in LAYOUTS:
        raise OperatorMissing(c.name, f"input_layout {c.layout!r}")
    check_tensors(rule, c, query, key, value, out)
    sizes = sizes_of(rule, c, query)
    q_lengths = query_lengths(rule, c, query, sizes)

    table, pages = tensor(c.block_table), None
    if table is not None:
        pages = paged(rule, c, key, value, table, sizes)
        dv = pages[1].shape[3]
    else:
        dv = value.t.shape[-1] // (sizes.nk if c.layout == "BSH" else 1)
    if sizes.tnd and not (c.q_rope is not None and sizes.d == LATENT):
        check_value_width(rule, sizes, dv, table)
    kv = [sequence(rule, c, key, value, pages, table, i, sizes) for i in range(sizes.batch)]
    q = query.t
    if c.q_rope is not None or c.k_rope is not None:
        # Layouts TND and BSND, whose heads are the dimension before the last.
        q_rope, k_ropes = rope_parts(rule, c, query, key, table, sizes)
        kv = [(torch.cat((k, rope), -1), v) for (k, v), rope in zip(kv, k_ropes, strict=True)]
        q = torch.cat((q, q_rope), -1)
    mask = tensor(c.mask)
    check_mask(rule, c, mask, q_lengths, kv, table, sizes)
    _check_outputs(rule, c, query, out, sizes, dv)
    _attend_all(c, q, kv, mask, q_lengths, sizes)


def _check_outputs(rule: Rules, c: Call, query: View, out: View, sizes: Sizes, dv: int) -> None:
    batch, s, n = sizes.batch, sizes.s, sizes.n
    shape = {
        "BNSD_BSND": (batch, s, n, dv),
        "TND": (query.t.shape[0], n, dv),
        "BSH": (batch, s, n * dv),
        "BSND": (batch, s, n, dv),
    }.get(c.layout, (batch, n, s, dv))
    rule.shape("attention_out", out.t, shape)
    sink = tensor(c.sink)
    if sink is not None:
        rule.same_dtype("learnable_sink", sink, "query", query.t)
        rule.shape("learnable_sink", sink, (n,))
        rule.that(dv in (64, 128), "value", f"D is 64 or 128 beside a sink (found {dv})", CANN)
        rule.equal("inner_precise", "it, beside a sink,", c.inner_precise, 0)


def _attend_all(c: Call, query, kv, mask, q_lengths: list[int], sizes: Sizes) -> None:
    """Writes the outputs."""
    out, lse, sink, tnd = view(c.out), view(c.lse), tensor(c.sink), sizes.tnd
    start = 0
    for i, length in enumerate(q_lengths):
        if tnd:
            q = query[start : start + length]
        elif c.layout in ("BNSD", "BNSD_BSND"):
            q = query[i].transpose(0, 1)[:length]
        else:
            q = query[i].view(sizes.s, sizes.n, -1)[:length]
        k, v = kv[i]
        if length:
            hidden = _hidden(c, mask, i, length, k.shape[0], sizes.decode)
            result, total = attend(q, k, v, c.scale, hidden, sink)
            result = result.to(out.t.dtype)
            total = total.masked_fill(total == -torch.inf, torch.inf)  # of rows that see nothing
            if tnd:
                out.t[start : start + length] = result
            elif c.layout == "BNSD":
                out.t[i, :, :length] = result.transpose(0, 1)
            else:
                out.t[i, :length] = result.reshape(length, *out.t.shape[2:])
            if c.want_lse and tnd:
                lse.t[start : start + length] = total.unsqueeze(-1)
            elif c.want_lse:
                lse.t[i, :, :length] = total.t().unsqueeze(-1)
        if not tnd and length < sizes.s:  # rows behind a shorter sequence
            (out.t[i, :, length:] if c.layout == "BNSD" else out.t[i, length:]).zero_()
        start += length


# ------------------------------------------------------------------------------- entry points
# Arguments in the order of the C interface.  Which versions torch_npu calls: V3 for
# npu_fused_infer_attention_score, V4 for its v2, V5 for both on Ascend 950.
INPUTS = """query key value pse_shift atten_mask actual_seq_lengths actual_seq_lengths_kv
    dequant_scale1 quant_scale1 dequant_scale2 quant_scale2 quant_offset2 antiquant_scale
    antiquant_offset block_table query_padding_size kv_padding_size key_antiquant_scale
    key_antiquant_offset value_antiquant_scale value_antiquant_offset key_shared_prefix
    value_shared_prefix actual_shared_prefix_len query_rope key_rope
    key_rope_antiquant_scale""".split()
INPUT_LETTERS = "tTTttIIttttttttttttttttIttt"
NEWER_INPUTS = ["dequant_scale_query", "learnable_sink"]
START_INDICES = ["q_start_idx", "kv_start_idx"]
ATTRIBUTES = """num_heads scale pre_tokens next_tokens input_layout num_key_value_heads sparse_mode
    inner_precise block_size antiquant_mode softmax_lse_flag key_antiquant_mode
    value_antiquant_mode""".split()
ATTRIBUTE_LETTERS = "idiiSiiiiibii"
SIMULATED = {
    *("query", "key", "value", "atten_mask", "actual_seq_lengths", "actual_seq_lengths_kv"),
    *("block_table", "learnable_sink", "query_rope", "key_rope"),
}


def _call(name, inputs, attributes, arguments):
    """Refuses the inputs that are not simulated and runs the rest."""
    given = dict(zip(inputs, arguments, strict=False))
    for argument, value in given.items():
        absent = value is None or (isinstance(value, list) and not value)
        if argument not in SIMULATED and not absent:
            raise OperatorMissing(name, argument)
    said = dict(zip(attributes, arguments[len(inputs) : -2], strict=True))
    fused_attention(
        Call(
            name,
            given["query"],
            given["key"],
            given["value"],
            given["atten_mask"],
            given["actual_seq_lengths"],
            given["actual_seq_lengths_kv"],
            given["block_table"],
            said["num_heads"],
            said["scale"],
            said["pre_tokens"],
            said["next_tokens"],
            said["input_layout"],
            said["num_key_value_heads"],
            said["sparse_mode"],
            said["inner_precise"],
            said["block_size"],
            said["softmax_lse_flag"],
            *arguments[-2:],
            given.get("learnable_sink"),
            given["query_rope"],
            given["key_rope"],
        )
    )


@aclnn("aclnnFusedInferAttentionScoreV3", INPUT_LETTERS + ATTRIBUTE_LETTERS + "tt")
def v3(*arguments):
    _call("npu_fused_infer_attention_score", INPUTS, ATTRIBUTES, arguments)


@aclnn("aclnnFusedInferAttentionScoreV4", INPUT_LETTERS + "tt" + ATTRIBUTE_LETTERS + "i" + "tt")
def v4(*arguments):
    name = "npu_fused_infer_attention_score_v2"
    _call(name, INPUTS + NEWER_INPUTS, [*ATTRIBUTES, "query_quant_mode"], arguments)


@aclnn("aclnnFusedInferAttentionScoreV5", INPUT_LETTERS + "ttII" + ATTRIBUTE_LETTERS + "ii" + "tt")
def v5(*arguments):
    name = "npu_fused_infer_attention_score (aclnn V5)"
    inputs = INPUTS + NEWER_INPUTS + START_INDICES
    _call(name, inputs, [*ATTRIBUTES, "query_quant_mode", "pse_type"], arguments)
