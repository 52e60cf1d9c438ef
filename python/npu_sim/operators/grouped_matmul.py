"""npu_grouped_matmul: one matrix product an expert, y[rows of e] = x[rows of e] @ weight[e], plain
or with dequantised weights.

Sources: torch_npu 2.13.0's documentation of npu_grouped_matmul (DOC), CANN's documentation
(aclnnGroupedMatmulV5.md: V5) and the checks of CANN's aclnn_grouped_matmul.cpp (CANN).

    x            one (M, K)       float16, bfloat16, float32 (plain only; not on Ascend 950)
    weight       one (E, K, N)    dtype of x, int8, or int32 holding int4: then (E, K, N/8) or the
                                  transposed view (E, K/8, N)
                 E of (K, N)      the same; at most 128; not on 310P, on Ascend 950 plain ones only
    bias         (E, N)           with one weight, else E of (N,); float16 with float16 x, else
                                  float32
    antiquant_scale, antiquant_offset    both, always (on Ascend 950 the offset may be left out);
                                  dtype of x
                 (E, N)           per channel
                 (E, G, N)        per group: int4 only, on A2 and A3; G divides K, K/G is even where
                                  weight is transposed
    group_list   (E,) int64       cumulated row numbers (group_list_type 0) or rows of each expert
                                  (1: then of two experts or more); E <= 1024
    split_item 2 or 3, group_type 0      the form the engine and this project use: one x, one y

Not simulated, and refused by name: several x or y (split_item 0 and 1, group_type -1), group_type
2, int8 x, activations.

Where the sources differ: V5 calls int4 per group symmetric; its kernel applies the offset of each
group (grouped_matmul_antiquant.h) and production relies on it (SGLang AWQAscendMoEKernel).  Groups
under 32 are neither refused nor used in production on A2 and A3: refused here.  V5 up to CANN 9.1
has int4 per group on A2 and A3 only, later text on Ascend 950 too, in groups of 32 to 256: refused
here.  DOC wants the rows of all experts to be M; V5 wants M or fewer and leaves the rows behind
alone, as expert parallelism needs (vllm-ascend's token_dispatcher); it has no text for 310P.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch

from . import faults
from .antiquant import dequantise, matmul
from .products import A2, A3, A5, P310, product
from .registry import aclnn
from .rules import BF16, F16, F32, I8, I32, I64, OperatorMissing, Rules, is_transposed
from .view import View, int4_of, view, views

DOC = "torch_npu 2.13.0 documentation of npu_grouped_matmul"
V5 = "CANN aclnnGroupedMatmulV5.md"
CANN = "CANN aclnn_grouped_matmul.cpp"
NAME = "npu_grouped_matmul"
INNER_LIMIT, LIST_LIMIT, GROUP_LIMIT, SMALLEST_GROUP = 65536, 128, 1024, 32


@dataclass(kw_only=True)
class Call:
    """The arguments in CANN's order: tensors or lists of them, then attributes, then outputs."""

    x: Any
    weight: Any
    bias: Any
    scale: Any
    offset: Any
    antiquant_scale: Any
    antiquant_offset: Any
    per_token_scale: Any
    group_list: Any
    activation_input: Any = None
    activation_quant_scale: Any = None
    activation_quant_offset: Any = None
    split_item: int
    group_type: int
    group_list_type: int
    act_type: int
    tuning_config: Any = None  # not in V4
    quant_group_size: int = 0  # for FRACTAL_NZ alone
    y: Any
    activation_feature_out: Any = None
    dyn_quant_scale_out: Any = None
    nz: bool

    def __post_init__(self) -> None:
        lists = ("x", "weight", "bias", "scale", "offset", "per_token_scale", "y")
        for name in (*lists, "antiquant_scale", "antiquant_offset"):
            setattr(self, name, views(getattr(self, name)))
        self.many = len(self.weight) > 1

    @property
    def packed_as(self) -> str | None:
        """int4 or int8; None of plain weights."""
        return {I8: "int8", I32: "int4"}.get(self.weight[0].t.dtype)


def grouped_matmul(**arguments) -> None:
    c = Call(**arguments)
    rule = Rules(NAME, DOC)
    _check_forms(rule, c)
    faults.strike(NAME, c.packed_as)
    _check_dtypes_and_formats(rule, c)
    matrices, experts = _check_shapes(rule, c)
    a = c.x[0].t
    (m, k), n = a.shape, matrices[0].shape[-1]
    rule.shape("y", c.y[0].t, (m, n))
    _check_bias(rule, c, a, experts, n)
    ends = _ends(rule, c, experts, m)
    group = _check_antiquant(rule, c, experts, k, n)

    out, start = c.y[0].t, 0
    for e, end in enumerate(ends):
        if end > start:
            w = matrices[e] if c.many else matrices[0][e]
            if c.packed_as:
                s, o = (_of_expert(p, c.many, e) for p in (c.antiquant_scale, c.antiquant_offset))
                w = dequantise(w, s, o, group)
            b = None if not c.bias else c.bias[e].t if c.many else c.bias[0].t[e]
            out[start:end] = matmul(a[start:end], w, b).to(out.dtype)
        start = end
    if c.packed_as and faults.is_wrong(NAME, c.packed_as):
        out.mul_(2)
    # Rows past the last group are not written: on a device they hold what was in memory.


def _of_expert(parameters: list[View], many: bool, e: int) -> torch.Tensor | None:
    """Scale or offset of an expert, ``(G, N)``."""
    own = (parameters[e].t if many else parameters[0].t[e]) if parameters else None
    return own.unsqueeze(0) if own is not None and own.dim() == 1 else own


def _check_forms(rule: Rules, c: Call) -> None:
    rule.that(len(c.x) >= 1, "x", "the list is not empty")
    rule.that(
        1 <= len(c.weight) <= LIST_LIMIT,
        "weight",
        f"the list has 1 to {LIST_LIMIT} tensors (found {len(c.weight)})",
    )
    rule.that(not c.many or product() != P310, "weight", "310P takes one tensor")
    kind = c.x[0].t.dtype
    rule.one_of("group_type", c.group_type, -1, 0, 2)
    rule.one_of("split_item", c.split_item, 0, 1, 2, 3)
    rule.that(
        c.group_type != -1 or c.split_item in (0, 1),
        "group_type",
        "is not -1 where split_item is 2 or 3",
        CANN,
    )
    rule.that(c.group_type != 2 or product() != P310, "group_type", "310P takes 0 only")
    why = "must not be given with floating-point x"
    for argument in ("offset", "scale", "per_token_scale") if kind != I8 else ():
        rule.that(not getattr(c, argument), argument, why, CANN)
    for argument in (
        *("activation_input", "activation_quant_scale", "activation_quant_offset"),
        *("activation_feature_out", "dyn_quant_scale_out"),
    ):
        rule.that(not views(getattr(c, argument)), argument, "must not be given", V5)
    rows = c.x[0].t.shape[0]
    rule.that(
        all(0 <= value <= rows for value in (c.tuning_config or [])[:1]),
        "tuning_config",
        f"expects 0 to M = {rows} rows for an expert (found {c.tuning_config})",
        V5,
    )
    if c.group_type != 0 or c.split_item in (0, 1) or len(c.x) > 1 or kind == I8:
        raise OperatorMissing(
            NAME,
            f"group_type {c.group_type}, split_item {c.split_item}, {len(c.x)} x of {kind}",
        )
    rule.one_of("act_type", c.act_type, 0, 1, 2, 4, 5)
    rule.that(c.act_type == 0, "act_type", "activations need int8 x with per-token scales", CANN)


def _check_dtypes_and_formats(rule: Rules, c: Call) -> None:
    a, kind = c.x[0].t, c.weight[0].t.dtype
    halves = (F16,) if product() == P310 else (F16, BF16)
    takes_float32 = not c.packed_as and product() in (A2, A3)
    rule.dtype("x", a, *halves, *((F32,) if takes_float32 else ()))
    for w in c.weight:
        rule.dtype("weight", w.t, *((F16,) if product() == P310 else (a.dtype, I8, I32)))
        rule.that(w.t.dtype == kind, "weight", "every tensor of the list has one dtype")
    rule.that(
        not (c.many and c.packed_as) or product() != A5,
        "weight",
        "is one tensor on Ascend 950 where it is int8 or int4",
        V5,
    )
    for out in c.y:
        rule.same_dtype("y", out.t, "x", a)
    rule.plain("x", c.x[0])
    for w in c.weight:
        rule.that(
            w.nz == c.nz,
            "weight",
            f"every tensor is {'FRACTAL_NZ' if c.nz else 'ND'} (found format {w.format})",
        )


def _check_shapes(rule: Rules, c: Call) -> tuple[list[torch.Tensor], int]:
    """Returns the matrices, int4 as int8, and the number of experts."""
    a = c.x[0].t
    rule.ndim("x", a, 2)
    rule.that(a.is_contiguous() or not is_transposed(a), "x", "is not transposed")
    for w in c.weight:
        rule.ndim("weight", w.t, 2 if c.many else 3)
        rule.contiguous_or_transposed("weight", w.t)
    transposed = is_transposed(c.weight[0].t)
    for w in c.weight:
        rule.that(
            is_transposed(w.t) == transposed, "weight", "every tensor is transposed, or none", CANN
        )
    k = a.shape[1]
    matrices = [int4_of(w.t) if c.packed_as == "int4" else w.t for w in c.weight]
    n = matrices[0].shape[-1]
    for w in matrices:
        rule.equal("weight", "its K", w.shape[-2], k)
        rule.equal("weight", "its N", w.shape[-1], n)
    rule.that(k < INNER_LIMIT, "x", f"the last dimension is less than {INNER_LIMIT} (found {k})")
    inner = f"the stored last dimension is less than {INNER_LIMIT} (found {n})"
    rule.that(transposed or n < INNER_LIMIT, "weight", inner)
    if product() == P310:
        rule.multiple("weight", "N on 310P", n, 16)
    if c.nz:
        rows, columns = (n, k) if transposed else (k, n)
        inner = {I8: 32, I32: 64}.get(c.weight[0].t.dtype, 16)
        rule.that(
            rows % 16 == 0 and columns % inner == 0,
            "weight",
            f"FRACTAL_NZ stores tiles of 16 x {inner}: stored rows divide by 16 and columns by "
            f"{inner} (found {rows} x {columns})",
            CANN,
        )
        rule.that(
            not c.packed_as and a.dtype != F32,
            "weight",
            "FRACTAL_NZ is for float16 and bfloat16 weights, not with antiquant",
            CANN,
        )
    rule.equal("y", "the number of tensors", len(c.y), 1)
    return matrices, len(matrices) if c.many else matrices[0].shape[0]


def _check_bias(rule: Rules, c: Call, a: torch.Tensor, experts: int, n: int) -> None:
    if not c.bias:
        return
    rule.equal("bias", "the number of tensors", len(c.bias), len(c.weight))
    allowed = (F16,) if a.dtype == F16 else (F32, BF16) if product() == A5 else (F32,)
    for b in c.bias:
        rule.that(
            b.t.dtype in allowed,
            "bias",
            f"dtype is {allowed[0]} where x is {a.dtype} (found {b.t.dtype})",
        )
        rule.shape("bias", b.t, (n,) if c.many else (experts, n))


def _ends(rule: Rules, c: Call, experts: int, m: int) -> list[int]:
    """The row after the last of each expert."""
    rule.present("group_list", c.group_list, "is required where group_type is 0")
    g = view(c.group_list).t
    rule.dtype("group_list", g, I64)
    rule.one_of("group_list_type", c.group_list_type, 0, 1)
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
    if c.group_list_type == 0:
        rule.that(
            all(p <= q for p, q in zip(values, values[1:], strict=False)),
            "group_list",
            f"cumulated values do not decrease (found {values})",
        )
        ends = values
    else:
        # CANN's own check takes one group.
        rule.that(
            len(values) > 1, "group_list", "has two groups or more where group_list_type is 1"
        )
        ends = torch.tensor(values).cumsum(0).tolist()
    if product() == P310:
        rule.that(ends[-1] == m, "group_list", f"ends at M = {m} on 310P (found {ends[-1]})")
    # Less leaves the other rows alone, as CANN's page says; torch_npu's has M.  More reads past x.
    rule.that(ends[-1] <= m, "group_list", f"ends at M = {m} or before (found {ends[-1]})", V5)
    return ends


def _check_antiquant(rule: Rules, c: Call, experts: int, k: int, n: int) -> int:
    """Checks scale and offset; returns the group size, 0 for per channel."""
    given = (("antiquant_scale", c.antiquant_scale), ("antiquant_offset", c.antiquant_offset))
    if not c.packed_as:
        why = "must not be given with floating-point weights"
        for argument, parameters in given:
            rule.that(not parameters, argument, why, CANN)
        return 0
    rule.that(
        len(c.antiquant_scale) > 0,
        "antiquant_scale",
        "is required with int8 and int4 weights",
        CANN,
    )
    rule.that(
        len(c.antiquant_offset) > 0 or product() == A5,
        "antiquant_offset",
        "is required with int8 and int4 weights, zeros where there is none",
        CANN,
    )
    group = 0
    for argument, parameters in given:
        if parameters:
            rule.equal(argument, "the number of tensors", len(parameters), experts if c.many else 1)
        for p in parameters:
            group = _check_parameter(rule, c, argument, p, group, (experts, k, n))
    if group:
        _check_group(rule, c, group)
    return group


def _check_parameter(
    rule: Rules, c: Call, argument: str, p: View, group: int, sizes: tuple[int, int, int]
) -> int:
    """Checks a scale or an offset; returns its group size, 0 for per channel."""
    experts, k, n = sizes
    rule.same_dtype(argument, p.t, "x", c.x[0].t)
    rule.plain(argument, p)
    channels = (n,) if c.many else (experts, n)
    per_group = p.t.dim() == len(channels) + 1
    rule.that(
        c.packed_as == "int4" or not per_group,
        argument,
        f"int8 weights are per channel: shape {channels} (found {tuple(p.t.shape)})",
    )
    if not per_group:
        rule.shape(argument, p.t, channels)
        rule.that(group == 0, argument, "is per group where antiquant_scale is")
        return 0
    groups = p.t.shape[-2]
    rule.that(
        groups > 0 and k % groups == 0,
        argument,
        f"the number of groups divides K = {k} (found {groups})",
    )
    rule.shape(argument, p.t, (groups, n) if c.many else (experts, groups, n))
    rule.that(
        group in (0, k // groups),
        argument,
        f"every tensor has groups of {group} (found {k // groups})",
    )
    return k // groups


def _check_group(rule: Rules, c: Call, group: int) -> None:
    rule.that(
        product() in (A2, A3),
        "antiquant_scale",
        "int4 is per group on Atlas A2 and A3 only: per channel elsewhere",
        V5,
    )
    rule.that(
        not is_transposed(c.weight[0].t) or group % 2 == 0,
        "antiquant_scale",
        f"the group length is even where weight is transposed (found {group})",
    )
    rule.undocumented(
        group >= SMALLEST_GROUP,
        "antiquant_scale",
        f"groups shorter than {SMALLEST_GROUP} (found {group})",
    )


def _entry(name: str, letters: str, lacks: tuple[str, ...], nz: bool = False):
    """letters: of the attributes, see registry.py; lacks: what the entry point does not have."""
    names = [f.name for f in fields(Call) if f.name not in ("nz", *lacks)]

    def entry(*arguments):
        grouped_matmul(nz=nz, **dict(zip(names, arguments, strict=True)))

    return aclnn(name, "TTTTTTTT" + "t" + "TTT" + letters + "TTT")(entry)


v4 = _entry("aclnnGroupedMatmulV4", "iiii", ("tuning_config", "quant_group_size"))
v5 = _entry("aclnnGroupedMatmulV5", "iiiiI", ("quant_group_size",))
weight_nz = _entry("aclnnGroupedMatmulWeightNz", "iiiiIi", (), nz=True)
