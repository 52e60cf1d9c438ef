"""npu_grouped_matmul: one matrix product an expert, y[rows of e] = x[rows of e] @ weight[e], plain
or with dequantised weights.

Sources: torch_npu 2.13.0's documentation of npu_grouped_matmul (DOC), and the checks of CANN's
aclnn_grouped_matmul.cpp (CANN).

    x            one (M, K)       float16, bfloat16, float32 (plain only; not on Ascend 950)
    weight       one (E, K, N)    dtype of x, int8, or int32 holding int4: then (E, K, N/8) or the
                                  transposed view (E, K/8, N)
                 E of (K, N)      the same; at most 128
    bias         (E, N)           with one weight, else E of (N,); float16 with float16 x, else
                                  float32
    antiquant_scale, antiquant_offset    both, always; dtype of x
                 (E, N)           per channel
                 (E, G, N)        per group: int4 only; G divides K, K/G is even where weight is
                                  transposed
    group_list   (E,) int64       cumulated row numbers (group_list_type 0) or rows of each expert
                                  (1); E <= 1024
    split_item 2 or 3, group_type 0      the form the engine and this project use: one x, one y

Not simulated, and refused by name: several x or y (split_item 0 and 1, group_type -1), group_type
2, int8 x, activations in the product. CANN's documentation (aclnnGroupedMatmulV5.md) says of int4
per group that it is symmetric; its kernel applies the offset of each group
(grouped_matmul_antiquant.h, DataCopyScaleAndOffset) and production code relies on it (SGLang
AWQAscendMoEKernel), so offsets are taken. No lower bound of 32 on the group of int4 is stated
anywhere; production code uses 32 and more (SGLang NPUWNA16Int4MoEMethod, vllm-ascend w4a16),
smaller ones are refused.
"""

from __future__ import annotations

import torch

from . import faults
from .antiquant import dequantise, matmul
from .registry import aclnn
from .rules import (
    A5,
    BF16,
    F16,
    F32,
    I8,
    I32,
    I64,
    P310,
    OperatorMissing,
    Rules,
    is_transposed,
    product,
)
from .view import int4_of, view, views

DOC = "torch_npu 2.13.0 documentation of npu_grouped_matmul"
CANN = "CANN aclnn_grouped_matmul.cpp"
NAME = "npu_grouped_matmul"
INNER_LIMIT, LIST_LIMIT, GROUP_LIMIT, SMALLEST_GROUP = 65536, 128, 1024, 32


def grouped_matmul(
    x,
    weight,
    bias,
    scale,
    offset,
    antiquant_scale,
    antiquant_offset,
    per_token_scale,
    group_list,
    split_item,
    group_type,
    group_list_type,
    act_type,
    y,
    nz,
):
    rule = Rules(NAME, DOC)
    x, weight, bias, y = views(x), views(weight), views(bias), views(y)
    aq_scale, aq_offset = views(antiquant_scale), views(antiquant_offset)
    is310 = product() == P310

    # forms
    rule.that(len(x) >= 1, "x", "the list is not empty")
    rule.that(
        1 <= len(weight) <= LIST_LIMIT,
        "weight",
        f"the list has 1 to {LIST_LIMIT} tensors (found {len(weight)})",
    )
    rule.one_of("group_type", group_type, -1, 0, 2)
    rule.one_of("split_item", split_item, 0, 1, 2, 3)
    rule.that(
        group_type != -1 or split_item in (0, 1),
        "group_type",
        "is not -1 where split_item is 2 or 3",
        CANN,
    )
    rule.that(group_type != 2 or not is310, "group_type", "310P takes 0 only")
    for argument, value in (
        ("offset", views(offset)),
        ("scale", views(scale)),
        ("per_token_scale", views(per_token_scale)),
    ):
        if x[0].t.dtype in (F16, BF16, F32):
            rule.that(not value, argument, "must not be given with floating-point x", CANN)
    if group_type != 0 or split_item in (0, 1) or len(x) > 1 or x[0].t.dtype == I8:
        raise OperatorMissing(
            NAME, f"group_type {group_type}, split_item {split_item}, {len(x)} x of {x[0].t.dtype}"
        )
    rule.one_of("act_type", act_type, 0, 1, 2, 4, 5)
    rule.that(act_type == 0, "act_type", "activations need int8 x with per-token scales", CANN)

    a = x[0].t
    many = len(weight) > 1
    kind = weight[0].t.dtype
    int4, antiquant = kind == I32, kind in (I8, I32)
    packed_as = {I8: "int8", I32: "int4"}.get(kind)
    faults.strike(NAME, packed_as)

    # dtypes
    rule.dtype(
        "x",
        a,
        *((F16,) if is310 else (F16, BF16) if antiquant or product() == A5 else (F16, BF16, F32)),
    )
    for w in weight:
        rule.dtype("weight", w.t, *((F16,) if is310 else (a.dtype, I8, I32)))
        rule.that(w.t.dtype == kind, "weight", "every tensor of the list has one dtype")
    for out in y:
        rule.same_dtype("y", out.t, "x", a)

    # formats
    rule.plain("x", x[0])
    for w in weight:
        rule.that(
            w.nz == nz,
            "weight",
            f"every tensor is {'FRACTAL_NZ' if nz else 'ND'} (found format {w.format})",
        )

    # shapes
    rule.ndim("x", a, 2)
    rule.that(a.is_contiguous() or not is_transposed(a), "x", "is not transposed")
    for w in weight:
        rule.ndim("weight", w.t, 2 if many else 3)
        rule.contiguous_or_transposed("weight", w.t)
    transposed = is_transposed(weight[0].t)
    for w in weight:
        rule.that(
            is_transposed(w.t) == transposed, "weight", "every tensor is transposed, or none", CANN
        )
    m, k = a.shape
    matrices = [int4_of(w.t) if int4 else w.t for w in weight]
    experts = len(matrices) if many else matrices[0].shape[0]
    n = matrices[0].shape[-1]
    for w in matrices:
        rule.equal("weight", "its K", w.shape[-2], k)
        rule.equal("weight", "its N", w.shape[-1], n)
    rule.that(k < INNER_LIMIT, "x", f"the last dimension is less than {INNER_LIMIT} (found {k})")
    rule.that(
        transposed or n < INNER_LIMIT,
        "weight",
        f"the stored last dimension is less than {INNER_LIMIT} (found {n})",
    )
    if is310:
        rule.multiple("weight", "N on 310P", n, 16)
    if nz:
        rows, columns = (n, k) if transposed else (k, n)
        inner = {I8: 32, I32: 64}.get(kind, 16)
        rule.that(
            rows % 16 == 0 and columns % inner == 0,
            "weight",
            f"FRACTAL_NZ stores tiles of 16 x {inner}: stored rows divide by 16 and columns by "
            f"{inner} (found {rows} x {columns})",
            CANN,
        )
        rule.that(
            not antiquant and a.dtype != F32,
            "weight",
            "FRACTAL_NZ is for float16 and bfloat16 weights, not with antiquant",
            CANN,
        )
    rule.equal("y", "the number of tensors", len(y), 1)
    rule.shape("y", y[0].t, (m, n))
    if bias:
        rule.equal("bias", "the number of tensors", len(bias), len(weight))
        for b in bias:
            allowed = (F16,) if a.dtype == F16 else (F32, BF16) if product() == A5 else (F32,)
            rule.that(
                b.t.dtype in allowed,
                "bias",
                f"dtype is {allowed[0]} where x is {a.dtype} (found {b.t.dtype})",
            )
            rule.shape("bias", b.t, (n,) if many else (experts, n))

    # groups of rows
    ends = _ends(rule, group_list, group_list_type, experts, m)

    # scales
    group = 0
    if antiquant:
        group = _antiquant_rules(
            rule, aq_scale, aq_offset, a, many, experts, k, n, int4, transposed
        )
    else:
        rule.that(
            not aq_scale, "antiquant_scale", "must not be given with floating-point weights", CANN
        )
        rule.that(
            not aq_offset, "antiquant_offset", "must not be given with floating-point weights", CANN
        )

    out, start = y[0].t, 0
    for e, end in enumerate(ends):
        if end > start:
            w = matrices[e] if many else matrices[0][e]
            if antiquant:
                s, o = (p[e].t if many else p[0].t[e] for p in (aq_scale, aq_offset))
                w = dequantise(w, *(v if v.dim() == 2 else v.unsqueeze(0) for v in (s, o)), group)
            b = None if not bias else bias[e].t if many else bias[0].t[e]
            out[start:end] = matmul(a[start:end], w, b).to(out.dtype)
        start = end
    if packed_as and faults.is_wrong(NAME, packed_as):
        out.mul_(2)
    # Rows past the last group are not written: on a device they hold what was in memory.


def _ends(rule, group_list, group_list_type, experts, m) -> list[int]:
    """The row after the last of each expert."""
    rule.present("group_list", group_list, "is required where group_type is 0")
    g = view(group_list).t
    rule.dtype("group_list", g, I64)
    rule.one_of("group_list_type", group_list_type, 0, 1)
    rule.ndim("group_list", g, 1)
    rule.that(
        g.numel() <= GROUP_LIMIT,
        "group_list",
        f"has at most {GROUP_LIMIT} groups (found {g.numel()})",
    )
    rule.shape("group_list", g, (experts,))
    values = g.tolist()
    rule.that(
        all(v >= 0 for v in values), "group_list", f"values are not negative (found {min(values)})"
    )
    if group_list_type == 0:
        rule.that(
            all(p <= q for p, q in zip(values, values[1:], strict=False)),
            "group_list",
            f"cumulated values do not decrease (found {values})",
        )
        ends = values
    else:
        ends = torch.tensor(values).cumsum(0).tolist()
    # The wheel's documentation asks for exactly M, CANN's (aclnnGroupedMatmulV5.md) for at most M:
    # rows behind the last group are left alone, which expert parallelism uses.  More than M reads
    # past x.
    rule.that(ends[-1] <= m, "group_list", f"ends at M = {m} or before (found {ends[-1]})")
    return ends


def _antiquant_rules(rule, aq_scale, aq_offset, a, many, experts, k, n, int4, transposed) -> int:
    """Checks scale and offset; returns the group size, 0 for per channel."""
    rule.that(len(aq_scale) > 0, "antiquant_scale", "is required with int8 and int4 weights", CANN)
    rule.that(
        len(aq_offset) > 0,
        "antiquant_offset",
        "is required with int8 and int4 weights, zeros where there is none",
        CANN,
    )
    count = experts if many else 1
    group = 0
    for argument, parameters in (("antiquant_scale", aq_scale), ("antiquant_offset", aq_offset)):
        rule.equal(argument, "the number of tensors", len(parameters), count)
        for p in parameters:
            rule.same_dtype(argument, p.t, "x", a)
            rule.plain(argument, p)
            per_group = p.t.dim() == (2 if many else 3)
            rule.that(
                int4 or not per_group,
                argument,
                f"int8 weights are per channel: shape {(n,) if many else (experts, n)} (found "
                f"{tuple(p.t.shape)})",
            )
            if per_group:
                groups = p.t.shape[-2]
                rule.that(
                    groups > 0 and k % groups == 0,
                    argument,
                    f"the number of groups divides K = {k} (found {groups})",
                )
                rule.shape(argument, p.t, (groups, n) if many else (experts, groups, n))
                rule.that(
                    group in (0, k // groups),
                    argument,
                    f"every tensor has groups of {group} (found {k // groups})",
                )
                group = k // groups
            else:
                rule.shape(argument, p.t, (n,) if many else (experts, n))
                rule.that(group == 0, argument, "is per group where antiquant_scale is")
    if group:
        rule.that(
            not transposed or group % 2 == 0,
            "antiquant_scale",
            f"the group length is even where weight is transposed (found {group})",
        )
        rule.undocumented(
            group >= SMALLEST_GROUP,
            "antiquant_scale",
            f"groups shorter than {SMALLEST_GROUP} (found {group})",
        )
    return group


@aclnn("aclnnGroupedMatmulV4", "TTTTTTTT" + "t" + "TTT" + "iiii" + "TTT")
def v4(
    x,
    weight,
    bias,
    scale,
    offset,
    aq_scale,
    aq_offset,
    per_token,
    group_list,
    act_in,
    act_scale,
    act_offset,
    split_item,
    group_type,
    group_list_type,
    act_type,
    y,
    act_out,
    quant_out,
):
    grouped_matmul(
        x,
        weight,
        bias,
        scale,
        offset,
        aq_scale,
        aq_offset,
        per_token,
        group_list,
        split_item,
        group_type,
        group_list_type,
        act_type,
        y,
        False,
    )


@aclnn("aclnnGroupedMatmulV5", "TTTTTTTT" + "t" + "TTT" + "iiii" + "I" + "TTT")
def v5(
    x,
    weight,
    bias,
    scale,
    offset,
    aq_scale,
    aq_offset,
    per_token,
    group_list,
    act_in,
    act_scale,
    act_offset,
    split_item,
    group_type,
    group_list_type,
    act_type,
    tuning,
    y,
    act_out,
    quant_out,
):
    grouped_matmul(
        x,
        weight,
        bias,
        scale,
        offset,
        aq_scale,
        aq_offset,
        per_token,
        group_list,
        split_item,
        group_type,
        group_list_type,
        act_type,
        y,
        False,
    )


@aclnn("aclnnGroupedMatmulWeightNz", "TTTTTTTT" + "t" + "TTT" + "iiii" + "I" + "i" + "TTT")
def weight_nz(
    x,
    weight,
    bias,
    scale,
    offset,
    aq_scale,
    aq_offset,
    per_token,
    group_list,
    act_in,
    act_scale,
    act_offset,
    split_item,
    group_type,
    group_list_type,
    act_type,
    tuning,
    quant_group_size,
    y,
    act_out,
    quant_out,
):
    grouped_matmul(
        x,
        weight,
        bias,
        scale,
        offset,
        aq_scale,
        aq_offset,
        per_token,
        group_list,
        split_item,
        group_type,
        group_list_type,
        act_type,
        y,
        True,
    )
