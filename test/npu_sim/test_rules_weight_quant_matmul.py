"""npu_weight_quant_batchmatmul and npu_convert_weight_to_int4pack: each rule broken once, and
values.
"""

import pytest
import torch
from rule_cases import A2, A3, A5, P310, Case, Operator, every_case, on, refused
from torch import Tensor

from npu_sim.operators.int4_pack import convert_weight_to_int4pack
from npu_sim.operators.rules import OperatorMissing
from npu_sim.operators.view import View, int4_of, int4_pack
from npu_sim.operators.weight_quant_matmul import nz, v2, v3, weight_quant_matmul

NAME = "npu_weight_quant_batchmatmul"
BF16, F16 = torch.bfloat16, torch.float16


def pack(w):
    return int4_pack(w.to(torch.int32))


def call(m=3, k=128, n=64, group=32, dtype=BF16, int4=True, transposed=False, fmt=2):
    """A right call, and its int weights under 'values'."""
    generator = torch.Generator().manual_seed(1)
    low, high = (-8, 8) if int4 else (-128, 128)
    values = torch.randint(low, high, (k, n), generator=generator)
    groups = -(-k // group) if group else 1
    scale = (torch.rand(groups, n, generator=generator) * 0.1).to(dtype)
    offset = torch.randint(-8, 8, (groups, n), generator=generator).to(dtype)
    if transposed:
        weight = (
            pack(values.t().contiguous()) if int4 else values.t().contiguous().to(torch.int8)
        ).t()
        scale, offset = (v.t().contiguous().t() for v in (scale, offset))
    else:
        weight = pack(values) if int4 else values.to(torch.int8)
    return dict(
        x=torch.randn(m, k, generator=generator).to(dtype),
        weight=View(weight, fmt),
        antiquant_scale=scale,
        antiquant_offset=offset,
        quant_scale=None,
        quant_offset=None,
        bias=None,
        group=group,
        y=torch.empty(m, n, dtype=dtype),
        inner_precise=0,
        values=values,
    )


def operator(values=None, **arguments):
    weight_quant_matmul(**arguments)


def of_weight(change):
    return lambda w: View(change(w.t), w.format)


NZ = dict(fmt=29)
CASES = [
    Case(Tensor.float, "x", "dtype is one of float16, bfloat16"),
    Case({"group": 0}, "x", "dtype is one of float16", dict(group=0, int4=False), P310),
    Case(of_weight(Tensor.long), "weight", "dtype is one of int8, int32"),
    Case({}, "weight", "dtype is one of int8", dict(group=0, dtype=F16), P310),
    Case(
        torch.ones(64),
        "quant_scale",
        "not supported on 310P",
        dict(group=0, dtype=F16, int4=False),
        P310,
    ),
    Case(Tensor.long, "antiquant_scale", "64-bit scales need float16 x"),
    Case(Tensor.half, "antiquant_scale", "dtype equals that of x"),
    Case(Tensor.float, "antiquant_scale", "dtype equals that of x"),
    Case(Tensor.int, "antiquant_offset", "dtype equals that of antiquant_scale"),
    Case(torch.ones(64, dtype=BF16), "bias", "dtype is torch.float32"),
    Case(torch.ones(64), "bias", "dtype is torch.float16", dict(dtype=F16)),
    Case(torch.ones(64, dtype=F16), "bias", "dtype is torch.float32", soc=A5),
    Case(torch.empty(3, 64), "y", "dtype equals that of x"),
    Case(lambda t: View(t, 29), "x", "storage format is ND"),
    Case(lambda t: View(t, 29), "antiquant_scale", "storage format is ND"),
    Case(lambda t: t.t().contiguous().t(), "x", "not transposed on Ascend 950", soc=A5),
    Case(
        lambda t: t.view(1, -1),
        "antiquant_scale",
        "shape is (1,) or (1, 1) or (64,)",
        dict(dtype=F16, int4=False, group=0),
        P310,
    ),
    Case(
        {
            "x": lambda t: torch.empty(4_000_001, 128, dtype=F16),  # never touched
            "antiquant_scale": torch.ones(1, dtype=F16),
            "antiquant_offset": None,
        },
        "x",
        "at most 512000000 elements",
        dict(dtype=F16, int4=False, group=0),
        P310,
    ),
    Case(
        {"antiquant_scale": torch.ones(128, dtype=F16)[::2], "antiquant_offset": None},
        "antiquant_scale",
        "must be contiguous",
        dict(dtype=F16, int4=False, group=0),
    ),
    Case(lambda t: t[None], "x", "has 2 dimensions"),
    Case(lambda t: t[0], "x", "has 2 dimensions"),
    Case(of_weight(lambda w: w[None]), "weight", "has 2 dimensions"),
    Case(lambda t: t[:0], "x", "empty tensors"),
    Case(torch.randn(3, 256).to(BF16)[:, ::2], "x", "contiguous or a transposed view"),
    Case(
        lambda t: torch.zeros(128, 16, dtype=torch.int32)[:, ::2],
        "weight",
        "contiguous or a transposed view",
    ),
    Case(
        {"weight": torch.zeros(8, 1, dtype=torch.int32).t(), "x": torch.zeros(3, 8, dtype=BF16)},
        "weight",
        "taken for another K",
    ),
    Case({"x": lambda t: t[:, :64].contiguous()}, "weight", "its K is 64"),
    Case(
        {"x": torch.zeros(1, 65536, dtype=BF16), "weight": torch.zeros(65536, 8, dtype=torch.int8)},
        "x",
        "K is in [1, 65535]",
    ),
    Case(torch.zeros(128, 65536, dtype=torch.int8), "weight", "N is in [1, 65535]"),
    Case(torch.zeros(128, 65536, dtype=BF16).t(), "x", "M is in [1, 65535] where x is transposed"),
    Case(torch.empty(3, 32, dtype=BF16), "y", "shape is (3, 64)"),
    Case(torch.empty(64, 3, dtype=BF16).t(), "y", "must be contiguous"),
    Case(
        {},
        "antiquant_group_size",
        "310P has no per-group",
        dict(group=32, dtype=F16, int4=False),
        P310,
    ),
    Case({"group": 16}, "antiquant_group_size", "multiple of 32 in [32, K-1]"),
    Case({"group": 48}, "antiquant_group_size", "multiple of 32 in [32, K-1]"),
    Case({"group": 128}, "antiquant_group_size", "multiple of 32 in [32, K-1]"),
    Case({"group": 160}, "antiquant_group_size", "multiple of 32 in [32, K-1]"),
    Case({"group": -32}, "antiquant_group_size", "multiple of 32 in [32, K-1]"),
    Case(lambda t: t[:2], "antiquant_scale", "shape is (4, 64)"),
    Case(lambda t: t[:2], "antiquant_scale", "shape is (3, 64)", dict(k=160, group=64)),
    Case(
        lambda t: t[:, :32],
        "antiquant_scale",
        "shape is (1,) or (1, 1) or (64,) or (1, 64)",
        dict(group=0),
    ),
    Case(lambda t: t[:1], "antiquant_offset", "shape is (4, 64)"),
    Case(lambda t: t.t().contiguous().t(), "antiquant_scale", "contiguous, as weight is"),
    Case(
        Tensor.contiguous,
        "antiquant_scale",
        "a transposed view, as weight is",
        dict(transposed=True),
    ),
    Case(
        Tensor.contiguous,
        "antiquant_offset",
        "a transposed view, as weight is",
        dict(transposed=True),
    ),
    Case(torch.ones(32), "bias", "shape is (64,) or (1, 64)"),
    Case(torch.ones(128)[::2], "bias", "must be contiguous"),
    Case(5, "inner_precise", "is one of 0, 1"),
    Case({}, "weight", "tiles of 16 x 64", dict(n=72, **NZ)),
    Case({}, "weight", "int4 only on Ascend 950", dict(int4=False, group=0, **NZ), A5),
    Case({}, "weight", "int8 per group: not documented", dict(int4=False, **NZ)),
    Case(
        {"antiquant_scale": torch.ones(1, dtype=BF16), "antiquant_offset": None},
        "antiquant_scale",
        "never per tensor",
        dict(group=0, **NZ),
    ),
    Case({}, "weight", "per channel is transposed", dict(group=0, **NZ)),
    Case({}, "weight", "neither x nor weight transposed", dict(group=64, transposed=True, **NZ)),
    Case({}, "antiquant_group_size", "takes 64 or 128", dict(group=32, **NZ)),
    Case({}, "weight", "graph mode", dict(group=64, **NZ)),
    Case({}, "weight", "graph mode", dict(group=128, k=256, **NZ), A3),
    Case({}, "weight", "multiple of 64", dict(k=160, group=64, **NZ)),
]


def expected(c, group):
    """Row by row, in float64: independent of the operator's own arithmetic."""
    w = c["values"].double()
    s, o = c["antiquant_scale"].double(), c["antiquant_offset"]
    out = torch.empty_like(w)
    for row in range(w.shape[0]):
        g = row // group if group else 0
        out[row] = (w[row] + (0 if o is None else o.double()[g])) * s[g]
    y = c["x"].double() @ out
    return y if c["bias"] is None else y + c["bias"].double()


@pytest.mark.parametrize("soc", [A2, A3, A5])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("int4", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("k,group", [(128, 32), (160, 64), (128, 0)])
def test_values(soc, dtype, int4, transposed, k, group):
    c = call(k=k, group=group, dtype=dtype, int4=int4, transposed=transposed)
    c["bias"] = torch.randn(64).to(F16 if dtype == F16 else torch.float32)
    with on(soc):
        operator(**c)
    reference = expected(c, group)
    assert (c["y"].double() - reference).abs().max() <= (
        2e-2 if dtype == BF16 else 3e-3
    ) * reference.abs().max()


def test_symmetric_needs_no_offset():
    c = call() | {"antiquant_offset": None}
    operator(**c)
    assert torch.allclose(c["y"].double(), expected(c, 32), rtol=2e-2, atol=2e-1)


def test_310p_per_channel_int8():
    c = call(dtype=F16, int4=False, group=0)
    c |= {name: c[name][0] for name in ("antiquant_scale", "antiquant_offset")}
    with on(P310):
        operator(**c)
    c |= {name: c[name][None] for name in ("antiquant_scale", "antiquant_offset")}
    assert torch.allclose(c["y"].double(), expected(c, 0), rtol=1e-2, atol=1.0)


@pytest.mark.parametrize(
    "dtype,w,offset,scale,expected",
    [
        # float16: 7 + 0.001 rounds to 7 before it is scaled
        (F16, 7, 0.001, 1024.0, 7168.0),
        # bfloat16: 1.00390625 is kept in float32 and the product rounds once, to 1.0625; rounding
        # the sum first would give 1.0546875
        (BF16, 1, 0.00390625, 1.0546875, 1.0625),
    ],
)
def test_where_the_weights_round(dtype, w, offset, scale, expected):
    c = call(m=1, k=64, n=8, dtype=dtype)
    c["weight"] = View(pack(torch.full((64, 8), w)))
    c["antiquant_offset"], c["antiquant_scale"] = (
        torch.full((2, 8), offset, dtype=dtype),
        torch.full((2, 8), scale, dtype=dtype),
    )
    c["x"] = torch.zeros(1, 64, dtype=dtype)
    c["x"][0, 0] = 1
    operator(**c)
    assert c["y"][0, 0].item() == expected


def positional(c):
    names = "x weight antiquant_scale antiquant_offset quant_scale quant_offset bias group".split()
    return [c[n] for n in names]


def test_nz_and_v2_v3_entry_points():
    for soc, entry, extra, fmt in ((A2, v2, [], 2), (A2, v3, [1], 2), (A5, nz, [], 29)):
        c = call(group=64, fmt=fmt)
        with on(soc):
            entry(*positional(c), *extra, c["y"])
        assert torch.allclose(c["y"].double(), expected(c, 64), rtol=2e-2, atol=2e-1)
    case = Case({}, "weight", "takes FRACTAL_NZ")
    refused(Operator(NAME, lambda **a: nz(*positional(a), a["y"]), call, ()), case)


@pytest.mark.parametrize(
    "change", [{"quant_scale": torch.ones(64)}, {"quant_offset": torch.ones(64)}]
)
def test_missing_is_named(change):
    with pytest.raises(OperatorMissing, match=NAME):
        operator(**call() | change)
    with pytest.raises(OperatorMissing, match="64-bit"):
        c = call(dtype=F16, int4=False, group=0)
        operator(**c | {"antiquant_scale": c["antiquant_scale"].long()})


# ---------------------------------------------------------------- packing
def weight_call(rows=4, columns=16):
    return {"weight": torch.randint(-8, 8, (rows, columns), dtype=torch.int32), "inner_k_tiles": 0}


PACK_CASES = [
    Case({}, "product", "exists on", soc=P310),
    Case(lambda t: t.to(torch.int8), "weight", "dtype is one of int32"),
    Case(lambda t: t[0], "weight", "has 2 dimensions"),
    Case(lambda t: t[None], "weight", "has 2 dimensions"),
    Case(torch.empty(0, 8, dtype=torch.int32), "weight", "empty tensors"),
    Case(torch.zeros(16, 8, dtype=torch.int32).t(), "weight", "must be contiguous"),
    Case(torch.zeros(4, 12, dtype=torch.int32), "weight", "multiple of 8"),
    Case(torch.full((2, 8), 8, dtype=torch.int32), "weight", "values lie in [-8, 7]"),
    Case(torch.full((2, 8), -9, dtype=torch.int32), "weight", "values lie in [-8, 7]"),
    Case(1, "inner_k_tiles", "it is 0"),
]


OPERATORS = (
    Operator(NAME, operator, call, CASES),
    Operator("npu_convert_weight_to_int4pack", convert_weight_to_int4pack, weight_call, PACK_CASES),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


def test_pack_low_nibble_first():
    row = torch.tensor([[-8, -1, 0, 1, 2, 3, 4, 7]], dtype=torch.int32)
    word = convert_weight_to_int4pack(row).item() & 0xFFFFFFFF
    assert [(word >> (4 * i)) & 15 for i in range(8)] == [8, 15, 0, 1, 2, 3, 4, 7]
    w = torch.randint(-8, 8, (64, 32), dtype=torch.int32)
    assert torch.equal(int4_of(convert_weight_to_int4pack(w)).int(), w)
    assert torch.equal(int4_of(convert_weight_to_int4pack(w).t()).int(), w.t())
    with pytest.raises(OperatorMissing, match="FRACTAL_NZ"):
        convert_weight_to_int4pack(View(w, 29))
