"""Norms, gated activations, dynamic quantisation, top-k and top-p: each rule broken once, and
values.
"""

import pytest
import torch
from rule_cases import A3, A5, P310, Case, Operator, every_case, on, refused
from torch import Tensor
from torch.nn import functional

from npu_sim.operators.activation import clipped_swiglu, fast_gelu, geglu, swiglu
from npu_sim.operators.norm import add_rms_norm, gemma_rms_norm, rms_norm
from npu_sim.operators.quant import dynamic_quant, v1, v2
from npu_sim.operators.rules import OperatorMissing
from npu_sim.operators.sampling import apply_token_bitmask, top_k_top_p
from npu_sim.operators.view import View

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {BF16: 1e-2, F16: 2e-3, F32: 1e-5}


# ---------------------------------------------------------------- norms
def norm_call(dtype=BF16):
    x = torch.randn(5, 32).to(dtype)
    return dict(
        x=x,
        gamma=torch.randn(32).to(dtype),
        epsilon=1e-6,
        y=torch.empty_like(x),
        rstd=torch.empty(5, 1),
    )


def add_call(dtype=BF16):
    x = torch.randn(5, 32).to(dtype)
    return dict(
        x1=x,
        x2=torch.randn(5, 32).to(dtype),
        gamma=torch.randn(32).to(dtype),
        epsilon=1e-6,
        y=torch.empty_like(x),
        rstd=torch.empty(5, 1),
        x=torch.empty_like(x),
    )


NORM = [
    Case(Tensor.double, "x", "dtype is one of"),
    Case({}, "x", "dtype is one of float16, float32", soc=P310),
    Case(torch.ones(32), "gamma", "dtype equals that of x"),
    Case({"x": torch.tensor(1.0), "gamma": torch.ones(32)}, "x", "has 1 to 8 dimensions"),
    Case(torch.ones(16, dtype=BF16), "gamma", "shape equals the last dimensions of x"),
    Case(torch.ones(2, 5, 32, dtype=BF16), "gamma", "shape equals the last dimensions of x"),
    Case(lambda t: View(t, 29), "gamma", "storage format is ND"),
    Case(torch.empty(5, 16, dtype=BF16), "y", "shape is (5, 32)"),
    Case(
        dict.fromkeys(("x", "gamma", "y"), lambda t: t[..., :15]),
        "x",
        "32 bytes or more on 310P",
        dict(dtype=F16),
        P310,
    ),
]
ADD = [
    Case({"x1": lambda t: t[:0], "y": lambda t: t[:0]}, "x1", "empty tensors"),
    Case(torch.ones(5, 32), "x2", "dtype equals that of x1"),
    Case(torch.ones(1, 32, dtype=BF16), "x2", "shape is (5, 32)"),
    Case(lambda t: View(t, 29), "x2", "storage format is ND"),
]
GEMMA = [
    Case({}, "product", "exists on", soc=P310),
    Case({"x": lambda t: t[:0], "y": lambda t: t[:0]}, "x", "empty tensors"),
    Case(torch.randn(32, 5).to(BF16).t(), "x", "must be contiguous"),
    Case(torch.ones(64, dtype=BF16)[::2], "gamma", "must be contiguous"),
]


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_norm_values(dtype):
    c = norm_call(dtype)
    rms_norm(**c)
    reference = functional.rms_norm(c["x"].double(), (32,), c["gamma"].double(), 1e-6)
    assert (c["y"].double() - reference).abs().max() <= TOLERANCE[dtype] * reference.abs().max()
    assert torch.allclose(
        c["rstd"].double(),
        c["x"].double().pow(2).mean(-1, keepdim=True).add(1e-6).rsqrt(),
        rtol=1e-5,
    )
    gemma_rms_norm(**c)
    reference = functional.rms_norm(c["x"].double(), (32,), c["gamma"].double() + 1, 1e-6)
    assert (c["y"].double() - reference).abs().max() <= TOLERANCE[dtype] * reference.abs().max()
    c = add_call(dtype)
    add_rms_norm(**c)
    total = c["x1"] + c["x2"]
    assert torch.equal(c["x"], total)
    reference = functional.rms_norm(total.double(), (32,), c["gamma"].double(), 1e-6)
    assert (c["y"].double() - reference).abs().max() <= TOLERANCE[dtype] * reference.abs().max()


def test_rms_norm_takes_no_rows_and_strided_rows():
    c = norm_call()
    rms_norm(**c | {"x": c["x"][:0], "y": c["y"][:0], "rstd": c["rstd"][:0]})
    wide = torch.randn(5, 64).to(BF16)
    rms_norm(**c | {"x": wide[:, :32]})
    reference = functional.rms_norm(wide[:, :32].double(), (32,), c["gamma"].double(), 1e-6)
    assert (c["y"].double() - reference).abs().max() <= 1e-2 * reference.abs().max()


# ---------------------------------------------------------------- activations
def swiglu_call(dtype=BF16):
    return dict(x=torch.randn(4, 64).to(dtype), dim=-1, y=torch.empty(4, 32, dtype=dtype))


def clipped_call(dtype=BF16):
    return dict(
        x=torch.randn(4, 64).to(dtype) * 5,
        group_index=None,
        dim=-1,
        alpha=1.702,
        limit=7.0,
        bias=1.0,
        interleaved=True,
        y=torch.full((4, 32), 9).to(dtype),
    )


def geglu_call(dtype=BF16):
    return dict(
        x=torch.randn(4, 64).to(dtype),
        dim=-1,
        approximate=1,
        activate_left=True,
        y=torch.empty(4, 32, dtype=dtype),
        y_gelu=torch.empty(4, 32, dtype=dtype),
    )


SWIGLU = [
    Case({}, "self", "dtype is one of float16, float32", soc=P310),
    Case({"x": torch.ones(4, 64, dtype=torch.int32)}, "self", "dtype is one of"),
    Case({"x": torch.tensor(1.0)}, "self", "has 1 to 8 dimensions"),
    Case({"x": lambda t: View(t, 29)}, "self", "storage format is ND"),
    Case(2, "dim", "it is in [-2, 1]"),
    Case({"x": torch.ones(4, 63, dtype=BF16)}, "self", "multiple of 2"),
    Case(torch.empty(4, 64, dtype=BF16), "y", "shape is (4, 32)"),
    Case(torch.empty(4, 32), "y", "dtype equals that of self"),
    Case(
        {"x": lambda t: t[:0], "y": lambda t: t[:0]}, "self", "empty tensors", dict(dtype=F16), P310
    ),
    Case(
        {"x": lambda t: t[:, :60], "y": lambda t: t[:, :30]},
        "self",
        "the bytes of the last dimension is a multiple of 64",
        dict(dtype=F16),
        P310,
    ),
]
CLIPPED = [
    Case({}, "product", "exists on", soc=P310),
    Case(torch.ones(64, dtype=BF16), "x", "more than 1 dimension"),
    Case(torch.ones(64, 4, dtype=BF16).t(), "x", "must be contiguous"),
    Case(torch.tensor([1], dtype=torch.int32), "group_index", "dtype is one of int64"),
    Case(torch.tensor([[1]]), "group_index", "has 1 dimensions"),
    Case(0.0, "limit", "is positive"),
    Case(torch.zeros(8193, dtype=torch.int64), "group_index", "has 8192 at most"),
    Case(torch.zeros(0, dtype=torch.int64), "group_index", "is not empty on Ascend 950", soc=A5),
    Case(torch.tensor([3, -1]), "group_index", "values are not negative"),
    Case(
        {"group_index": torch.tensor([1]), "dim": 0, "y": torch.empty(2, 64, dtype=BF16)},
        "group_index",
        "2-D x split along its last",
    ),
    Case(torch.tensor([3, 3]), "group_index", "its sum is in [0, 4]"),
]
GEGLU = [Case(2, "approximate", "is one of 0, 1")]
FAST = [
    Case({}, "product", "exists on", soc=P310),
    Case({"x": torch.ones(4, 8, dtype=torch.int32)}, "self", "dtype is one of float16"),
    Case({"x": torch.ones([1] * 9)}, "self", "has 0 to 8 dimensions"),
    Case({"x": lambda t: View(t, 29)}, "self", "storage format is ND"),
]


def fast_call():
    return dict(x=torch.randn(4, 8).to(BF16), y=torch.empty(4, 8, dtype=BF16))


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_activation_values(dtype):
    close = lambda y, r: (y.double() - r).abs().max() <= TOLERANCE[dtype] * max(r.abs().max(), 1)  # noqa: E731
    c = swiglu_call(dtype)
    swiglu(**c)
    a, b = c["x"].double().chunk(2, -1)
    assert close(c["y"], a * a.sigmoid() * b)
    c = geglu_call(dtype)
    geglu(**c)
    a, b = c["x"].double().chunk(2, -1)
    assert close(c["y"], functional.gelu(a, approximate="tanh") * b) and close(
        c["y_gelu"], functional.gelu(a, approximate="tanh")
    )
    geglu(**c | {"approximate": 0, "activate_left": False})
    assert close(c["y"], functional.gelu(b) * a)
    c = clipped_call(dtype)
    clipped_swiglu(**c)
    a, b = c["x"].double()[:, ::2].clamp(max=7), c["x"].double()[:, 1::2].clamp(-7, 7)
    assert close(c["y"], a * (1.702 * a).sigmoid() * (b + 1))
    c = clipped_call(dtype)
    clipped_swiglu(**c | {"interleaved": False, "group_index": torch.tensor([2, 1])})
    a, b = c["x"].double().chunk(2, -1)
    a, b = a.clamp(max=7), b.clamp(-7, 7)
    assert close(c["y"][:3], (a * (1.702 * a).sigmoid() * (b + 1))[:3]) and (c["y"][3] == 9).all()
    x = torch.randn(9).to(dtype)
    y = torch.empty_like(x)
    fast_gelu(x, y)
    assert close(y, x.double() / (1 + (-1.702 * x.double()).exp()))


# ---------------------------------------------------------------- quantisation
def quant_call(dtype=BF16):
    return dict(
        x=torch.randn(6, 16).to(dtype),
        smooth=None,
        group_index=None,
        y=torch.empty(6, 16, dtype=torch.int8),
        scale=torch.empty(6),
    )


QUANT = [
    Case({}, "x", "dtype is one of float16 (", soc=P310),
    Case({}, "x", "the last dimension is a multiple of 32", dict(dtype=F16), P310),
    Case(torch.randn(6, 16), "x", "dtype is one of float16, bfloat16"),
    Case(torch.randn(16).to(BF16), "x", "more than 1 dimension"),
    Case(lambda t: View(t, 29), "x", "storage format is ND"),
    Case({"smooth": torch.ones(16)}, "smooth_scales", "dtype equals that of x"),
    Case({"smooth": torch.ones(8, dtype=BF16)}, "smooth_scales", "shape is (16,)"),
]


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("smooth", [False, True])
def test_dynamic_quant_values(dtype, smooth):
    c = quant_call(dtype)
    c["x"][2] = 0
    factor = (torch.rand(16) + 0.5).to(dtype) if smooth else None
    v2(c["x"], factor, None, 2, c["y"], c["scale"], None)
    f = c["x"].double() * (factor.double() if smooth else 1)
    for row in range(6):
        peak = f[row].abs().max()
        assert abs(c["scale"][row].item() - peak / 127) <= 1e-6
        assert (c["y"][row].double() * peak / 127 - f[row]).abs().max() <= peak / 127 / 2 + 1e-6
    again = torch.empty_like(c["y"])
    v1(c["x"], factor, again, c["scale"])
    assert torch.equal(again, c["y"])


def test_dynamic_quant_missing_is_named():
    for change in (
        {"group_index": torch.tensor([6], dtype=torch.int32)},
        {"y": torch.empty(6, 2, dtype=torch.int32)},
    ):
        with pytest.raises(OperatorMissing, match="npu_dynamic_quant"):
            dynamic_quant(**quant_call() | change)


# ---------------------------------------------------------------- sampling
def sampling_call(dtype=F32):
    return dict(
        logits=torch.randn(3, 50).to(dtype),
        p=torch.tensor([0.9, 0.5, 1.0]).to(dtype),
        k=torch.tensor([5, 50, 1], dtype=torch.int32),
        out=torch.empty(3, 50, dtype=dtype),
    )


SAMPLING = [
    Case({}, "product", "exists on", soc=P310),
    Case(torch.ones(3, 50, dtype=torch.int32), "logits", "dtype is one of"),
    Case(torch.ones(50), "logits", "has 2 dimensions"),
    Case({"p": None, "k": None}, "p", "not both None"),
    Case(torch.ones(3, dtype=F16), "p", "dtype equals that of logits"),
    Case(torch.ones(1), "p", "shape is (3,)"),
    Case(torch.tensor([0.5, 1.5, 1.0]), "p", "values lie in [0, 1]"),
    Case(torch.ones(3, dtype=torch.int64), "k", "dtype is one of int32"),
    Case(torch.ones(2, dtype=torch.int32), "k", "shape is (3,)"),
    Case(torch.zeros(3, dtype=torch.int32), "k", "values lie in [1, 50]"),
    Case(
        {"k": torch.full((3,), 1025, dtype=torch.int32), "logits": torch.randn(3, 2000)},
        "k",
        "values lie in [1, 1024]",
    ),
]


def test_top_k_top_p_values():
    c = sampling_call()
    top_k_top_p(**c)
    for row in range(3):
        order = sorted(range(50), key=lambda i: -c["logits"][row, i].item())[: int(c["k"][row])]
        probabilities = c["logits"][row, order].double().softmax(0)
        kept, below = set(), 0.0
        for i, q in zip(
            order, probabilities.tolist(), strict=False
        ):  # the smallest set whose probability reaches p
            if kept and below >= c["p"][row].item():
                break
            kept.add(i)
            below += q
        assert {i for i in range(50) if c["out"][row, i] > -torch.inf} == kept
        assert all(c["out"][row, i] == c["logits"][row, i] for i in kept)
    top_k_top_p(**c | {"p": None})
    assert [(c["out"][row] > -torch.inf).sum().item() for row in range(3)] == [5, 50, 1]
    top_k_top_p(**c | {"k": None, "p": torch.ones(3)})
    assert (c["out"] > -torch.inf).all()
    with on(A3):
        top_k_top_p(**c)


def bitmask_call():
    logits = torch.randn(2, 50)
    return dict(
        logits=logits, bitmask=torch.tensor([[0b1011, 1 << 17], [-1, -1]], dtype=torch.int32)
    )


BITMASK = [
    Case(torch.ones(2, 50, dtype=torch.int32), "logits", "dtype is one of"),
    Case(torch.ones(50), "logits", "has 2 dimensions"),
    Case(torch.ones(2, 2, dtype=torch.int64), "bitmask", "int32"),
    Case(torch.ones(2, 1, dtype=torch.int32), "bitmask", "shape is (2, 2)"),
]


OPERATORS = (
    Operator("npu_rms_norm", rms_norm, norm_call, NORM),
    Operator("npu_add_rms_norm", add_rms_norm, add_call, ADD),
    Operator("npu_gemma_rms_norm", gemma_rms_norm, norm_call, GEMMA),
    Operator("npu_swiglu", swiglu, swiglu_call, SWIGLU),
    Operator("npu_clipped_swiglu", clipped_swiglu, clipped_call, CLIPPED),
    Operator("npu_geglu", geglu, geglu_call, GEGLU),
    Operator("npu_fast_gelu", fast_gelu, fast_call, FAST),
    Operator("npu_dynamic_quant", dynamic_quant, quant_call, QUANT),
    Operator("npu_top_k_top_p", top_k_top_p, sampling_call, SAMPLING),
    Operator("npu::apply_token_bitmask", apply_token_bitmask, bitmask_call, BITMASK),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


def test_token_bitmask_values():
    c = bitmask_call()
    before = c["logits"].clone()
    apply_token_bitmask(**c)
    kept = [i for i in range(50) if c["logits"][0, i] > -torch.inf]
    assert kept == [0, 1, 3, 49] and torch.equal(c["logits"][0, kept], before[0, kept])
    assert torch.equal(c["logits"][1], before[1])
