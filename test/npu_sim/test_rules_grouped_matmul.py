"""npu_grouped_matmul: each rule broken once, and values."""

import pytest
import torch
from rule_cases import A2, A3, A5, P310, Case, Operator, every_case, on, refused
from torch import Tensor

from npu_sim.operators.grouped_matmul import grouped_matmul, v4, v5, weight_nz
from npu_sim.operators.rules import OperatorMissing
from npu_sim.operators.view import View, int4_of, int4_pack

NAME = "npu_grouped_matmul"
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


def call(
    kind="int4",
    dtype=BF16,
    group=32,
    experts=3,
    k=64,
    n=128,
    counts=(2, 0, 5),
    transposed=False,
    many=False,
    nz=False,
):
    """A right call, and float64 weights under 'values'.  kind: plain, int8 or int4."""
    generator = torch.Generator().manual_seed(2)
    m = sum(counts)
    arguments = dict(
        bias=None,
        scale=None,
        offset=None,
        antiquant_scale=None,
        antiquant_offset=None,
        per_token_scale=None,
        group_list=torch.tensor(counts).cumsum(0),
        split_item=2,
        group_type=0,
        group_list_type=0,
        act_type=0,
        nz=nz,
    )
    if kind == "plain":
        stored = torch.randn(experts, k, n, generator=generator).to(dtype)
        values = stored.double()
    else:
        ints = (
            torch.randint(-8, 8, (experts, k, n), generator=generator)
            if kind == "int4"
            else torch.randint(-128, 128, (experts, k, n), generator=generator)
        )
        groups = k // group if group else 1
        s = (torch.rand(experts, groups, n, generator=generator) * 0.1).to(dtype)
        o = torch.randint(-8, 8, (experts, groups, n), generator=generator).to(dtype)
        wide = lambda v: v.double().repeat_interleave(k // groups, 1)  # noqa: E731
        values = (ints.double() + wide(o)) * wide(s)
        s, o = (v if group else v[:, 0] for v in (s, o))
        arguments |= dict(
            antiquant_scale=list(s) if many else [s], antiquant_offset=list(o) if many else [o]
        )
        stored = ints.to(torch.int32) if kind == "int4" else ints.to(torch.int8)
    if transposed:
        stored = stored.transpose(1, 2).contiguous()
    if kind == "int4":
        stored = int4_pack(stored)
    if transposed:
        stored = stored.transpose(1, 2)
    weight = [View(w, 29 if nz else 2) for w in (stored.unbind(0) if many else [stored])]
    return arguments | dict(
        x=[torch.randn(m, k, generator=generator).to(dtype)],
        weight=weight,
        y=[torch.full((m, n), torch.nan).to(dtype)],
        values=values,
    )


def operator(values=None, **arguments):
    grouped_matmul(**arguments)


def one(change):
    """Of the single tensor of a list argument."""
    return lambda tensors: [change(tensors[0])]


def weights(change):
    return lambda views: [View(change(w.t), w.format) for w in views]


PLAIN, INT8, INT8C = dict(kind="plain"), dict(kind="int8"), dict(kind="int8", group=0)
CASES = [
    Case([], "x", "not empty"),
    Case([], "weight", "1 to 128 tensors"),
    Case(lambda t: t * 129, "weight", "1 to 128 tensors"),
    Case(1, "group_type", "is one of -1, 0, 2"),
    Case(5, "split_item", "is one of 0, 1, 2, 3"),
    Case(-1, "group_type", "is not -1 where split_item is 2 or 3"),
    Case(2, "group_type", "310P takes 0 only", soc=P310),
    Case([torch.ones(3, 128)], "scale", "must not be given with floating-point x"),
    Case([torch.ones(7)], "per_token_scale", "must not be given"),
    Case(3, "act_type", "is one of 0, 1, 2, 4, 5"),
    Case(5, "act_type", "need int8 x"),
    Case(one(Tensor.float), "x", "dtype is one of float16, bfloat16"),
    Case({}, "x", "dtype is one of float16, bfloat16", dict(kind="plain", dtype=F32), A5),
    Case({}, "x", "dtype is one of float16", PLAIN, P310),
    Case(weights(Tensor.long), "weight", "dtype is one of"),
    Case(weights(Tensor.half), "weight", "dtype is one of", PLAIN),
    Case(
        lambda t: [t[0], View(torch.zeros(64, 128, dtype=torch.int8)), t[2]],
        "weight",
        "has one dtype",
        dict(many=True),
    ),
    Case(one(Tensor.half), "y", "dtype equals that of x"),
    Case(one(lambda t: View(t, 29)), "x", "storage format is ND"),
    Case(lambda t: [View(t[0].t, 29)], "weight", "every tensor is ND"),
    Case({"nz": True}, "weight", "every tensor is FRACTAL_NZ", PLAIN),
    Case(one(lambda t: t[None]), "x", "has 2 dimensions"),
    Case(one(lambda t: t.t().contiguous().t()), "x", "is not transposed"),
    Case(weights(lambda w: w[0]), "weight", "has 3 dimensions"),
    Case(
        weights(lambda w: torch.zeros(3, 64, 32, dtype=torch.int32)[..., ::2]),
        "weight",
        "contiguous or a transposed view",
    ),
    Case(
        lambda t: [t[0], View(torch.zeros(128, 64, dtype=BF16).t()), t[2]],
        "weight",
        "every tensor is transposed, or none",
        dict(kind="plain", many=True),
    ),
    Case({"x": one(lambda t: t[:, :32].contiguous())}, "weight", "its K is 32"),
    Case(
        lambda t: [t[0], View(torch.zeros(64, 64, dtype=BF16)), t[2]],
        "weight",
        "its N is 128",
        dict(kind="plain", many=True),
    ),
    Case(
        {
            "x": [torch.zeros(7, 65536, dtype=BF16)],
            "weight": [View(torch.zeros(3, 65536, 1, dtype=BF16))],
        },
        "x",
        "less than 65536",
        PLAIN,
    ),
    Case(
        {
            "x": [torch.zeros(7, 1, dtype=BF16)],
            "weight": [View(torch.zeros(3, 1, 65536, dtype=BF16))],
        },
        "weight",
        "less than 65536",
        PLAIN,
    ),
    Case({}, "weight", "multiple of 16", dict(kind="plain", dtype=F16, n=40), P310),
    Case({}, "weight", "tiles of 16 x 16", dict(kind="plain", n=40, nz=True)),
    Case({}, "weight", "not with antiquant", dict(nz=True)),
    Case({}, "weight", "not with antiquant", dict(kind="int8", group=0, nz=True)),
    Case({}, "weight", "not with antiquant", dict(kind="plain", dtype=F32, nz=True)),
    Case(lambda t: t * 2, "y", "number of tensors is 1"),
    Case(one(lambda t: t[:3]), "y", "shape is (7, 128)"),
    Case([torch.ones(128)] * 2, "bias", "number of tensors is 1"),
    Case([torch.ones(3, 128, dtype=BF16)], "bias", "dtype is torch.float32"),
    Case([torch.ones(3, 128)], "bias", "dtype is torch.float16", dict(dtype=F16)),
    Case([torch.ones(128)], "bias", "shape is (3, 128)"),
    Case(None, "group_list", "is required"),
    Case(Tensor.int, "group_list", "dtype is one of int64"),
    Case(7, "group_list_type", "is one of 0, 1"),
    Case(lambda t: t[None], "group_list", "has 1 dimensions"),
    Case(torch.zeros(1025, dtype=torch.int64), "group_list", "at most 1024 groups"),
    Case(lambda t: t[:2], "group_list", "shape is (3,)"),
    Case(
        {"group_list": torch.tensor([3, -1, 5]), "group_list_type": 1}, "group_list", "not negative"
    ),
    Case(torch.tensor([5, 3, 7]), "group_list", "do not decrease"),
    Case(torch.tensor([2, 3, 9]), "group_list", "ends at M = 7"),
    Case(
        {"group_list": torch.tensor([2, 3, 9]), "group_list_type": 1}, "group_list", "ends at M = 7"
    ),
    Case(
        [torch.ones(3, 128, dtype=BF16)],
        "antiquant_scale",
        "must not be given with floating-point weights",
        PLAIN,
    ),
    Case(
        [torch.ones(3, 128, dtype=BF16)],
        "antiquant_offset",
        "must not be given with floating-point weights",
        PLAIN,
    ),
    Case({}, "weight", "dtype is one of float16", dict(dtype=F16), P310),
    Case({}, "antiquant_scale", "per group on Atlas A2 and A3 only", soc=A5),
    Case({}, "weight", "one tensor on Ascend 950", dict(many=True, group=0), A5),
    Case({}, "weight", "310P takes one tensor", dict(kind="plain", dtype=F16, many=True), P310),
    *(
        Case([torch.ones(1, 1)], name, "must not be given")
        for name in (
            *("activation_input", "activation_quant_scale", "activation_quant_offset"),
            *("activation_feature_out", "dyn_quant_scale_out"),
        )
    ),
    Case([-1], "tuning_config", "0 to M = 7"),
    Case([8], "tuning_config", "0 to M = 7"),
    Case({"group_list_type": 1}, "group_list", "two groups or more", dict(experts=1, counts=(7,))),
    Case(
        torch.tensor([2, 2, 6]),
        "group_list",
        "ends at M = 7 on 310P",
        dict(kind="plain", dtype=F16),
        P310,
    ),
    Case(None, "antiquant_scale", "is required"),
    Case(None, "antiquant_offset", "is required"),
    Case([], "antiquant_offset", "zeros where there is none"),
    Case(lambda t: t * 2, "antiquant_scale", "number of tensors is 1"),
    Case(one(Tensor.float), "antiquant_scale", "dtype equals that of x"),
    Case(one(Tensor.half), "antiquant_offset", "dtype equals that of x"),
    Case(one(lambda t: View(t, 29)), "antiquant_scale", "storage format is ND"),
    Case({}, "antiquant_scale", "int8 weights are per channel", INT8),
    Case(one(lambda t: torch.ones(3, 3, 128, dtype=BF16)), "antiquant_scale", "divides K = 64"),
    Case(one(lambda t: t[:2]), "antiquant_scale", "shape is (3, 2, 128)"),
    Case(one(lambda t: t[:, :1]), "antiquant_offset", "groups of 32"),
    Case(one(lambda t: t[:2]), "antiquant_scale", "shape is (3, 128)", INT8C),
    Case(one(lambda t: t[:, 0]), "antiquant_offset", "per group where antiquant_scale is"),
    Case({}, "antiquant_scale", "group length is even", dict(k=24, group=3, transposed=True)),
    Case(
        {}, "antiquant_scale", "groups shorter than 32 (found 16): not documented", dict(group=16)
    ),
]


OPERATORS = (Operator(NAME, operator, call, CASES),)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


def check(c, counts, bias=None):
    out, start = c["y"][0].double(), 0
    for e, count in enumerate(counts):
        expected = c["x"][0][start : start + count].double() @ c["values"][e]
        if bias is not None:
            expected += bias[e].double()
        tolerance = {BF16: 2e-2, F16: 3e-3, F32: 1e-5}[c["x"][0].dtype]
        assert (
            not count
            or (out[start : start + count] - expected).abs().max()
            <= tolerance * expected.abs().max()
        )
        start += count


@pytest.mark.parametrize("soc", [A2, A3, A5])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("kind,group", [("plain", 0), ("int8", 0), ("int4", 0), ("int4", 32)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("many", [False, True])
def test_values(soc, dtype, kind, group, transposed, many):
    if soc == A5 and kind != "plain" and (group or many):
        return  # refused: see the cases above
    counts = (2, 0, 5)
    c = call(kind=kind, dtype=dtype, group=group, transposed=transposed, many=many, counts=counts)
    bias = torch.randn(3, 128).to(F16 if dtype == F16 else F32)
    with on(soc):
        operator(**c | {"bias": list(bias) if many else [bias]})
    check(c, counts, bias)


def test_counts_and_rows_behind_the_last_group():
    c = call(counts=(2, 1, 5))
    operator(**c | {"group_list": torch.tensor([2, 1, 3]), "group_list_type": 1})
    check(c, (2, 1, 3))
    assert c["y"][0][6:].isnan().all()  # not computed, not written


def test_one_group_and_no_offset_on_950():
    c = call(experts=1, counts=(7,))
    operator(**c)  # cumulated rows may be of one group
    check(c, (7,))
    c = call(group=0, experts=2, counts=(3, 4))
    scale = c["antiquant_scale"][0].double().unsqueeze(1)
    c["values"] = int4_of(c["weight"][0].t).double() * scale
    with on(A5):
        operator(**c | {"antiquant_offset": None})
    check(c, (3, 4))


def test_float32_plain_and_310p():
    c = call(kind="plain", dtype=F32)
    operator(**c)
    check(c, (2, 0, 5))
    c = call(kind="plain", dtype=F16)
    with on(P310):
        operator(**c)
    check(c, (2, 0, 5))


def test_two_int4_planes_make_int8_groups():
    """w = 16 h + l: [x, x] @ [h; l - 8] with scales 16 s and s and offset 8 on the second plane is
    per-group int8, exactly.
    """
    experts, k, n, group = 2, 64, 64, 32
    w = torch.randint(-128, 128, (experts, k, n))
    high, low = w >> 4, (w & 15) - 8
    s = (torch.rand(experts, k // group, n) * 0.05 + 0.01).to(F16)
    zero, eight = torch.zeros_like(s), torch.full_like(s, 8)
    x = torch.randn(5, k).to(F16)
    y = torch.empty(5, n, dtype=F16)
    operator(
        x=[torch.cat((x, x), 1)],
        weight=[int4_pack(torch.cat((high, low), 1).to(torch.int32))],
        bias=None,
        scale=None,
        offset=None,
        antiquant_scale=[torch.cat((s * 16, s), 1)],
        antiquant_offset=[torch.cat((zero, eight), 1)],
        per_token_scale=None,
        group_list=torch.tensor([2, 5]),
        split_item=2,
        group_type=0,
        group_list_type=0,
        act_type=0,
        y=[y],
        nz=False,
    )
    dense = w.double() * s.double().repeat_interleave(group, 1)
    expected = torch.cat((x[:2].double() @ dense[0], x[2:].double() @ dense[1]))
    assert (y.double() - expected).abs().max() <= 4e-3 * expected.abs().max()


def test_entry_points():
    c = call()
    names = "x weight bias scale offset antiquant_scale antiquant_offset per_token_scale group_list"
    head = [c[name] for name in names.split()] + [None] * 3
    attributes = [2, 0, 0, 0]
    v4(*head, *attributes, c["y"], None, None)
    check(c, (2, 0, 5))
    c["y"][0].zero_()
    v5(*head, *attributes, None, c["y"], None, None)
    check(c, (2, 0, 5))
    c = call(kind="plain", nz=True)
    head[0], head[1], head[5], head[6] = c["x"], c["weight"], None, None
    weight_nz(*head, *attributes, None, 0, c["y"], None, None)
    check(c, (2, 0, 5))


@pytest.mark.parametrize(
    "change", [{"group_type": 2}, {"split_item": 0}, {"group_type": -1, "split_item": 0}]
)
def test_missing_is_named(change):
    with pytest.raises(OperatorMissing, match=NAME):
        operator(**call() | change)
