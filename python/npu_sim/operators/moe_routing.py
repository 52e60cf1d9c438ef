"""Sending tokens to their experts and back.

init        x (T, H), experts (T, K) -> rows of x, once an expert, sorted by expert; where each
                                        went; tokens an expert
finalize    rows and where they went -> (T, H), weighted and summed over the K experts of each token

Sorting is stable: tokens of one expert keep their order.  Outputs that are documented as undefined
are NaN here, so that reading them shows.
"""

from __future__ import annotations

import torch

from .moe_gating import DOC, write
from .products import A5, P310, product
from .registry import aclnn
from .rules import BF16, F16, F32, I8, I32, OperatorMissing, Rules
from .view import viewed

LARGEST_COUNT = 2**24


def _undefined(rows: torch.Tensor):
    if rows.is_floating_point():
        rows.fill_(torch.nan)


# ---------------------------------------------------------------- init
@aclnn("aclnnMoeInitRouting", "ttt" + "i" + "ttt")
def init_routing(
    x, row_idx, expert_idx, active_num, expanded_x, expanded_row_idx, expanded_expert_idx
):
    """The older interface: row_idx[t, j] = j T + t; expanded_row_idx[j T + t] is where token t went
    for its j-th expert.
    """
    ex, er, ee = expanded_x, expanded_row_idx, expanded_expert_idx
    rule = Rules("npu_moe_init_routing", DOC + "npu_moe_init_routing")
    rule.floats("x", x.t)
    rule.ndim("x", x.t, 2)
    rule.plain("x", x)
    rule.that(
        x.t.numel() < LARGEST_COUNT, "x", f"has fewer than 2^24 elements (found {x.t.numel()})"
    )
    rule.dtype("expert_idx", expert_idx.t, I32)
    rule.dtype("row_idx", row_idx.t, I32)
    tokens = x.t.shape[0]
    rule.that(
        expert_idx.t.dim() == 2 and expert_idx.t.shape[0] == tokens,
        "expert_idx",
        f"shape is ({tokens}, K) (found {tuple(expert_idx.t.shape)})",
    )
    rule.shape("row_idx", row_idx.t, expert_idx.t.shape)
    rule.values("row_idx", row_idx.t, 0, expert_idx.t.numel() - 1)
    rule.that(active_num >= 0, "active_num", f"is not negative (found {active_num})")
    order = expert_idx.t.flatten().argsort(stable=True)
    rows = row_idx.t.flatten()[order].long()
    place = torch.empty_like(rows)
    place[rows] = torch.arange(len(rows))
    write(er, place)
    write(ee, expert_idx.t.flatten()[order])
    ex.t.copy_(x.t[rows[: ex.t.shape[0]] % tokens])


@aclnn("aclnnMoeComputeExpertTokens", "tit")
def compute_expert_tokens(sorted_experts, num_expert, out):
    """out[e]: rows of experts 0 to e, in a sorted list of experts."""
    s = sorted_experts
    rule = Rules("npu_moe_compute_expert_tokens", DOC + "npu_moe_compute_expert_tokens")
    rule.dtype("sorted_expert_for_source_row", s.t, I32)
    rule.ndim("sorted_expert_for_source_row", s.t, 1)
    rule.that(
        s.t.numel() < LARGEST_COUNT,
        "sorted_expert_for_source_row",
        f"has fewer than 2^24 elements (found {s.t.numel()})",
    )
    rule.range("num_expert", "it", num_expert, 1, 2048)
    rule.values("sorted_expert_for_source_row", s.t, 0, num_expert - 1)
    rule.that(
        bool((s.t[1:] >= s.t[:-1]).all()), "sorted_expert_for_source_row", "does not decrease"
    )
    out.t.copy_(
        torch.searchsorted(
            s.t.contiguous(), torch.arange(num_expert, dtype=torch.int32), right=True
        )
    )


@aclnn("aclnnMoeInitRoutingV3", "tttt" + "iiiiibi" + "I" + "i" + "tttt")
def init_routing_v3(
    x,
    expert_idx,
    scale,
    offset,
    active_num,
    expert_capacity,
    expert_num,
    drop_pad_mode,
    count_type,
    count_flag,
    quant_mode,
    active_range,
    row_idx_type,
    expanded_x,
    expanded_row_idx,
    counts,
    expanded_scale,
):
    """npu_moe_init_routing_v2: rows of the experts in active_range, sorted by expert.

    expanded_row_idx, type 0: [t K + j] is where token t went for its j-th expert, -1 outside the
    range; type 1: [i] is t K + j of row i.
    """
    ex, er, es = expanded_x, expanded_row_idx, expanded_scale
    name = "npu_moe_init_routing_v2"
    rule = Rules(name, DOC + name)
    _init_rules(rule, x, expert_idx, scale, active_num)
    rule.equal("drop_pad_mode", "it", drop_pad_mode, 0)
    rule.one_of("expert_tokens_num_type", count_type, 1, 2)
    rule.that(bool(count_flag), "expert_tokens_num_flag", "is True")
    rule.one_of("quant_mode", quant_mode, -1, 1)
    rule.one_of("row_idx_type", row_idx_type, 0, 1)
    rule.range("expert_num", "it", expert_num, 1, 5120 if count_type == 2 else 10240)
    first, last = _active_range(rule, expert_idx, expert_num, active_range)
    rule.absent("offset", offset)
    rule.that(quant_mode == -1 or x.t.dtype != I8, "quant_mode", "is -1 with int8 x")
    if quant_mode == 1 or count_type == 2:
        raise OperatorMissing(name, f"quant_mode {quant_mode}, expert_tokens_num_type {count_type}")

    k = expert_idx.t.shape[1]
    flat = expert_idx.t.flatten().long()
    active = (flat >= first) & (flat < last)
    order = torch.where(active, flat, expert_num).argsort(stable=True)[: int(active.sum())]
    rows = order[: ex.t.shape[0]] if active_num > 0 else order
    ex.t[: len(rows)] = x.t[rows // k]
    _undefined(ex.t[len(rows) :])
    if row_idx_type == 0:
        place = torch.full((len(flat),), -1)
        place[rows] = torch.arange(len(rows))
        write(er, place)
    else:
        er.t[: len(rows)] = rows.to(er.t.dtype)
    write(counts, torch.bincount(flat[active] - first, minlength=last - first))
    if scale and es is not None:
        es.t[: len(rows)] = scale.t[rows // k]


def _active_range(rule, expert_idx, expert_num, active_range) -> tuple[int, int]:
    first, last = active_range if active_range else (0, expert_num)
    rule.that(
        0 <= first <= last <= expert_num,
        "active_expert_range",
        f"lies in [0, expert_num = {expert_num}] (found [{first}, {last}])",
    )
    rule.values("expert_idx", expert_idx.t, 0, expert_num - 1)
    return first, last


def _init_rules(rule, x, expert_idx, scale, active_num) -> None:
    rule.dtype("x", x.t, F16, BF16, F32, I8)
    rule.ndim("x", x.t, 2)
    rule.plain("x", x)
    tokens = x.t.shape[0]
    rule.dtype("expert_idx", expert_idx.t, I32)
    rule.that(
        expert_idx.t.dim() == 2 and expert_idx.t.shape[0] == tokens,
        "expert_idx",
        f"shape is ({tokens}, K) (found {tuple(expert_idx.t.shape)})",
    )
    rule.that(active_num >= -1, "active_num", f"is -1 or more (found {active_num})")
    if scale:
        rule.dtype("scale", scale.t, F32)
        rule.shape("scale", scale.t, (tokens,))


# ---------------------------------------------------------------- finalize
@viewed
def finalize_routing(rows, row_idx, skip1, skip2, bias, scales, experts, drop_pad_mode, k, y):
    """y[t] = skip1[t] + skip2[t] + sum_j scales[t, j] (rows[row_idx(t, j)] + bias[experts[t, j]])

    drop_pad_mode 0: row_idx[j T + t]; 2: row_idx[t K + j].  1 and 3, which drop rows, are not
    simulated.
    """
    name = "npu_moe_finalize_routing"
    # The wheel documents drop_pad_mode 0 alone; CANN's aclnnMoeFinalizeRoutingV2.md has 0 to 3,
    # SGLang 0.5.23 uses 2.
    rule = Rules(name, DOC + name + "; CANN aclnnMoeFinalizeRoutingV2.md")
    rule.range("drop_pad_mode", "it", drop_pad_mode, 0, 3)
    if product() == P310:
        rule.equal("drop_pad_mode", "it, on 310P,", drop_pad_mode, 2)
        rule.multiple("expanded_permuted_rows", "H, on 310P,", rows.t.shape[-1], 32)
        names = ("skip1", "skip2", "bias", "export_for_source_row")
        for argument, v in zip(names, (skip1, skip2, bias, experts), strict=True):
            rule.absent(argument, v, "must not be given on 310P")
    if drop_pad_mode in (1, 3):
        raise OperatorMissing(name, f"drop_pad_mode {drop_pad_mode}")
    rule.floats("expanded_permuted_rows", rows.t)
    rule.ndim("expanded_permuted_rows", rows.t, 2)
    rule.plain("expanded_permuted_rows", rows)
    rule.dtype("expanded_src_to_dst_row", row_idx.t, I32)
    rule.ndim("expanded_src_to_dst_row", row_idx.t, 1)
    if scales:
        rule.floats("scales", scales.t)
        rule.that(
            scales.t.dtype == rows.t.dtype
            or (scales.t.dtype == F32 and rows.t.dtype == BF16)
            or product() == A5,
            "scales",
            "dtype equals that of expanded_permuted_rows, or is float32 beside bfloat16 (found "
            f"{scales.t.dtype})",
        )
        rule.ndim("scales", scales.t, 2)
        tokens, k = scales.t.shape
    else:
        tokens = row_idx.t.numel() // k
    _final_rules(rule, rows, row_idx, (skip1, skip2), bias, experts, y, (tokens, k))

    index = row_idx.t.long()
    index = index.view(k, tokens).t() if drop_pad_mode == 0 else index.view(tokens, k)
    out = rows.t[index].float()
    if bias:
        out = out + bias.t.float()[experts.t.long()]
    if scales:
        out = out * scales.t.float().unsqueeze(-1)
    out = out.sum(1)
    for v in (skip1, skip2):
        if v:
            out = out + v.t.float()
    y.t.copy_(out)


def _final_rules(rule, rows, row_idx, skips, bias, experts, y, sizes) -> None:
    (tokens, k), width = sizes, rows.t.shape[1]
    rule.shape("expanded_src_to_dst_row", row_idx.t, (tokens * k,))
    rule.shape("out", y.t, (tokens, width))
    rule.values("expanded_src_to_dst_row", row_idx.t, 0, min(tokens * k, rows.t.shape[0]) - 1)
    rule.that(
        skips[1] is None or skips[0] is not None, "skip2", "is given together with skip1 only"
    )
    for argument, v in (("skip1", skips[0]), ("skip2", skips[1])):
        if v:
            rule.same_dtype(argument, v.t, "expanded_permuted_rows", rows.t)
            rule.shape(argument, v.t, (tokens, width))
    if experts:
        rule.dtype("export_for_source_row", experts.t, I32)
        rule.shape("export_for_source_row", experts.t, (tokens, k))
    if bias:
        rule.same_dtype("bias", bias.t, "expanded_permuted_rows", rows.t)
        rule.that(experts is not None, "bias", "is given together with export_for_source_row only")
        rule.that(
            bias.t.dim() == 2 and bias.t.shape[1] == width and bias.t.shape[0] >= k,
            "bias",
            f"shape is (E, {width}) with E >= K = {k} (found {tuple(bias.t.shape)})",
        )
        rule.values("export_for_source_row", experts.t, 0, bias.t.shape[0] - 1)


@aclnn("aclnnMoeFinalizeRoutingV2", "ttttttt" + "i" + "t")
def finalize_v2(rows, row_idx, skip1, skip2, bias, scales, experts, mode, y):
    finalize_routing(rows, row_idx, skip1, skip2, bias, scales, experts, mode, 1, y)


@aclnn("aclnnMoeFinalizeRoutingV4", "ttttttt" + "tttt" + "i" + "III" + "i" + "t")
def finalize_v4(
    rows, row_idx, skip1, skip2, bias, scales, experts, a, b, c, d, mode, e, f, g, k, y
):
    finalize_routing(rows, row_idx, skip1, skip2, bias, scales, experts, mode, k, y)
