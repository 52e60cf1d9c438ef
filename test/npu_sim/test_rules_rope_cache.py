"""Rotary embeddings, cache writes and format casts: each rule broken once, and values."""

from types import SimpleNamespace

import pytest
import torch
from rule_cases import A5, OLD, P310, Case, Operator, every_case, refused
from torch import Tensor

from npu_sim.operators.cache import scatter_nd_update, scatter_pa_kv_cache
from npu_sim.operators.format_cast import check_format_cast, format_cast
from npu_sim.operators.rope import (
    interleave_rope,
    mrope,
    mrope_v1,
    rotary_mul,
    rotary_mul_v2,
)
from npu_sim.operators.rules import OperatorMissing
from npu_sim.operators.view import View

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
TOLERANCE = {BF16: 1.5e-2, F16: 2e-3, F32: 1e-5}


def angles(*shape):
    a = torch.rand(*shape[:-1], shape[-1] // 2) * 6
    return a.cos(), a.sin()


def turned(x, cos, sin, neox):
    """Pair by pair, in float64.  x (.., D); cos, sin (.., D/2), broadcast."""
    x, out, half = x.double(), x.double().clone(), x.shape[-1] // 2
    for i in range(half):
        a, b = (i, i + half) if neox else (2 * i, 2 * i + 1)
        c, s = cos[..., i].double(), sin[..., i].double()
        out[..., a] = x[..., a] * c - x[..., b] * s
        out[..., b] = x[..., b] * c + x[..., a] * s
    return out


# ---------------------------------------------------------------- npu_rotary_mul
TURNED_80 = dict(x=(1, 6, 4, 80), r=(1, 6, 1, 80))


def rotary_call(dtype=BF16, mode=0, x=(1, 6, 4, 32), r=(1, 6, 1, 32)):
    cos, sin = angles(*r)
    wide = (
        (lambda v: torch.cat((v, v), -1)) if mode == 0 else (lambda v: v.repeat_interleave(2, -1))
    )
    return dict(
        x=torch.randn(*x).to(dtype),
        cos=wide(cos).to(dtype),
        sin=wide(sin).to(dtype),
        mode=mode,
        y=torch.empty(*x, dtype=dtype),
    )


ROTARY = [
    Case({}, "product", "exists on", soc=OLD),
    Case({}, "rotary_mode", "is 0 on 310P", dict(dtype=F16, mode=1), P310),
    Case({}, "input", "D is a multiple of 32", TURNED_80 | dict(dtype=F16), P310),
    Case(
        {}, "input", "D is in [1, 128]", dict(dtype=F16, x=(1, 2, 1, 160), r=(1, 2, 1, 160)), P310
    ),
    Case({}, "input", "D is in [1, 1024]", dict(x=(1, 2, 1, 1026), r=(1, 2, 1, 1026)), A5),
    Case({"mode": 2}, "rotary_mode", "is one of 0, 1"),
    Case({"x": torch.ones(1, 6, 4, 32, dtype=torch.int32)}, "input", "dtype is one of"),
    Case({"x": torch.ones(6, 4, 32, dtype=BF16)}, "input", "has 4 dimensions"),
    Case({"x": torch.ones(1, 0, 4, 32, dtype=BF16)}, "input", "empty tensors"),
    Case({"cos": lambda t: View(t, 29)}, "r1", "storage format is ND"),
    Case({"cos": Tensor.float}, "r1", "dtype equals that of input"),
    Case({}, "input", "D is in [1, 895]", dict(x=(1, 2, 1, 896), r=(1, 2, 1, 896))),
    Case(
        {
            "x": torch.ones(1, 6, 4, 31, dtype=BF16),
            "cos": torch.ones(1, 6, 1, 31, dtype=BF16),
            "sin": torch.ones(1, 6, 1, 31, dtype=BF16),
        },
        "input",
        "D is a multiple of 2",
    ),
    Case({"sin": lambda t: t[:, :3]}, "r2", "shape is (1, 6, 1, 32)"),
    Case(
        {"cos": torch.ones(1, 3, 1, 32, dtype=BF16), "sin": torch.ones(1, 3, 1, 32, dtype=BF16)},
        "r1",
        "shape is",
    ),
    Case({}, "input", "B and N are less than 1000", dict(x=(1, 2, 1000, 32), r=(1, 2, 1, 32))),
    Case({}, "input", "B * N is less than 1000", dict(mode=1, x=(10, 2, 100, 32), r=(1, 2, 1, 32))),
    Case({"cos": lambda t: t * 2}, "r1", "values lie in [-1, 1]"),
    Case({"sin": lambda t: t * 2}, "r2", "values lie in [-1, 1]"),
]


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize(
    "x,r",
    [
        ((1, 6, 4, 32), (1, 6, 1, 32)),
        ((2, 4, 6, 32), (1, 1, 6, 32)),
        ((6, 2, 4, 32), (6, 1, 1, 32)),
    ],
)
def test_rotary_mul_values(dtype, mode, x, r):
    c = rotary_call(dtype, mode, x, r)
    rotary_mul(**c)
    half = (lambda v: v[..., :16]) if mode == 0 else (lambda v: v[..., ::2])
    reference = turned(c["x"], half(c["cos"]), half(c["sin"]), mode == 0)
    assert (c["y"].double() - reference).abs().max() <= TOLERANCE[dtype] * 4


def test_rotary_mul_v2():
    c = rotary_call()
    head = [c[n] for n in ("x", "cos", "sin", "mode")]
    rotary_mul(**c)
    again = torch.empty_like(c["y"])
    rotary_mul_v2(*head, None, again)
    assert torch.equal(c["y"], again)
    with pytest.raises(OperatorMissing, match="npu_rotary_mul"):
        rotary_mul_v2(*head, torch.eye(32), again)


def test_rotary_mul_takes_a_long_prefill():
    rotary_mul(**rotary_call(x=(1, 2000, 4, 32), r=(1, 2000, 1, 32)))


# ---------------------------------------------------------------- npu_interleave_rope
def interleave_call(dtype=BF16):
    cos, sin = angles(2, 1, 3, 64)
    return dict(
        x=torch.randn(2, 4, 3, 64).to(dtype),
        cos=torch.cat((cos, cos), -1).to(dtype),
        sin=torch.cat((sin, sin), -1).to(dtype),
        y=torch.empty(2, 4, 3, 64, dtype=dtype),
    )


INTERLEAVE = [
    Case({}, "product", "exists on", soc=P310),
    Case(torch.randn(2, 4, 3, 64), "x", "dtype is one of"),
    Case(Tensor.half, "cos", "dtype equals that of x"),
    Case(torch.randn(4, 3, 64).to(BF16), "x", "has 4 dimensions"),
    Case(torch.randn(2, 4, 3, 32).to(BF16), "x", "D is 64"),
    Case(lambda t: View(t, 29), "x", "storage format is ND"),
    Case(lambda t: t[:1], "cos", "shape is (2, 1, 3, 64)"),
    Case(lambda t: t[:, :, :1], "sin", "shape is (2, 1, 3, 64)"),
]


def test_interleave_rope_values():
    c = interleave_call()
    interleave_rope(**c)
    paired = turned(
        c["x"], c["cos"][..., :32], c["sin"][..., :32], False
    )  # in place; the operator leaves halves
    reference = torch.cat((paired[..., 0::2], paired[..., 1::2]), -1)
    assert (c["y"].double() - reference).abs().max() <= 4 * TOLERANCE[BF16]


# ---------------------------------------------------------------- npu_mrope
def mrope_call(dtype=BF16, head=64, rotary=64, sections=False, neox=True, tokens=5):
    cos, sin = angles(20, rotary)
    positions = torch.randint(0, 20, (3, tokens) if sections else (tokens,))
    return dict(
        positions=positions,
        query=torch.randn(tokens, 4 * head).to(dtype),
        key=torch.randn(tokens, 2 * head).to(dtype),
        cache=torch.cat((cos, sin), -1).to(dtype),
        mrope_section=[8, 12, 12] if sections else [0, 0, 0],
        head_size=head,
        neox=neox,
        cache_mode=0,
        query_out=torch.empty(tokens, 4 * head, dtype=dtype),
        key_out=torch.empty(tokens, 2 * head, dtype=dtype),
    )


MROPE = [
    Case({}, "product", "exists on", soc=P310),
    Case(torch.ones(5), "positions", "dtype is one of int32, int64"),
    Case(torch.ones(1, 1, 5, dtype=torch.int64), "positions", "has 1 to 2 dimensions"),
    Case([16, 16], "mrope_section", "its length is 3"),
    Case(1, "cache_mode", "'interleave': not documented"),
    Case(torch.ones(5, 256, dtype=torch.int32), "query", "dtype is one of"),
    Case(torch.ones(5, 4, 64, dtype=BF16), "query", "has 2 dimensions"),
    Case(lambda t: View(t, 29), "key", "storage format is ND"),
    Case({"cache": Tensor.float}, "cos_sin_cache", "dtype equals that of query"),
    Case({}, "cos_sin_cache", "multiple of 32", dict(rotary=48)),
    Case({}, "cos_sin_cache", "multiple of 16", dict(rotary=24, dtype=F32)),
    Case({}, "head_size", "multiple of 32", dict(head=80)),
    Case({}, "cos_sin_cache", "at most the head size", dict(rotary=96)),
    Case(torch.ones(5, 100, dtype=BF16), "query", "multiple of 64"),
    Case(torch.ones(4, 128, dtype=BF16), "key", "number of tokens is 5"),
    Case(torch.ones(4, dtype=torch.int64), "positions", "shape is (5,)"),
    Case([8, 12, 12], "mrope_section", "with (3, T) positions and only then"),
    Case(
        [8, 8, 16],
        "mrope_section",
        "is one of [16, 24, 24], [24, 20, 20], [8, 12, 12]",
        dict(sections=True),
    ),
    Case({}, "mrope_section", "the sum is 16", dict(sections=True, rotary=32)),
    Case(torch.full((5,), 20), "positions", "values lie in [0, 19]"),
]


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("neox", [True, False])
@pytest.mark.parametrize("sections", [False, True])
@pytest.mark.parametrize("head", [64, 96])
def test_mrope_values(dtype, neox, sections, head):
    c = mrope_call(dtype, head=head, neox=neox, sections=sections)
    mrope(**c)
    cos, sin = c["cache"].chunk(2, -1)
    if sections:
        which = torch.tensor([0] * 8 + [1] * 12 + [2] * 12)
        pick = lambda v: torch.stack([v[c["positions"][which[i]], i] for i in range(32)], -1)  # noqa: E731
    else:
        pick = lambda v: v[c["positions"]]  # noqa: E731
    for name in ("query", "key"):
        x = c[name].view(5, -1, head)
        reference = x.double().clone()
        reference[..., :64] = turned(
            x[..., :64], pick(cos).unsqueeze(1), pick(sin).unsqueeze(1), neox
        )
        assert (c[name + "_out"].double() - reference.view(5, -1)).abs().max() <= 4 * TOLERANCE[
            dtype
        ]
    if not sections:
        again = dict(c, query_out=torch.empty_like(c["query_out"]))
        again.pop("cache_mode")
        mrope_v1(**again)
        assert torch.equal(again["query_out"], c["query_out"])


# ---------------------------------------------------------------- writing rows
def scatter_call():
    return dict(
        target=torch.zeros(4, 5, 6),
        indices=torch.tensor([[0, 1], [3, 4], [2, 0]]),
        updates=torch.randn(3, 6),
    )


SCATTER = [
    Case({"target": torch.zeros(4, 5, 6, dtype=torch.int32)}, "input", "dtype is one of"),
    Case(
        {"target": torch.zeros(4, 5, 6, dtype=BF16)},
        "input",
        "dtype is one of float32, float16, bool",
        soc=P310,
    ),
    Case(torch.ones(3, 2), "indices", "dtype is one of int32, int64"),
    Case(torch.ones(3, 6, dtype=F16), "updates", "dtype equals that of input"),
    Case({"target": torch.tensor(0.0)}, "input", "has 1 to 8 dimensions"),
    Case({"target": lambda t: View(t, 29)}, "input", "storage format is ND"),
    Case(torch.tensor([0, 1]), "indices", "at least 2 dimensions"),
    Case(torch.zeros(3, 4, dtype=torch.int64), "indices", "the last dimension is 1 to 3"),
    Case(torch.ones(3, 5), "updates", "shape is (3, 6)"),
    Case(torch.tensor([[0, 1], [4, 4], [2, 0]]), "indices", "values lie in [0, 3]"),
]


def test_scatter_nd_update_values():
    c = scatter_call()
    scatter_nd_update(**c)
    for index, update in zip(c["indices"].tolist(), c["updates"], strict=False):
        assert torch.equal(c["target"][tuple(index)], update)
    assert (c["target"].abs().sum(-1) > 0).sum() == 3


def pa_call(dtype=BF16):
    return dict(
        key=torch.randn(3, 2, 8).to(dtype),
        key_cache=torch.zeros(4, 16, 2, 8, dtype=dtype),
        slots=torch.tensor([0, 17, 63], dtype=torch.int32),
        value=torch.randn(3, 2, 4).to(dtype),
        value_cache=torch.zeros(4, 16, 2, 4, dtype=dtype),
        compress_lens=None,
        compress_offsets=None,
        seq_lens=None,
        cache_mode="Norm",
        scatter_mode="None",
        strides=[1, 1],
        offsets=[0, 0],
    )


PA = [
    Case({}, "product", "exists on", soc=P310),
    Case("x", "cache_mode", "'Norm' or 'PA_NZ'"),
    Case(torch.ones(3, 2, 8, dtype=torch.bool), "key", "dtype is one of"),
    Case({"slots": torch.ones(3)}, "slot_mapping", "dtype is one of int32, int64"),
    Case(torch.randn(3, 8, 2).to(BF16).transpose(1, 2), "key", "must be contiguous"),
    Case(lambda t: View(t, 29), "key_cache", "storage format is ND"),
    Case(Tensor.half, "value", "dtype equals that of key"),
    Case(lambda t: t[None], "key", "has 3 dimensions"),
    Case(lambda t: t[0], "value", "has 3 dimensions"),
    Case(lambda t: t[:2], "value", "shape is (3, 2, 4)"),
    Case(lambda t: t[0], "key_cache", "has 4 dimensions"),
    Case(torch.zeros(4, 16, 1, 8, dtype=BF16), "key_cache", "shape is (4, 16, 2, 8)"),
    Case(torch.zeros(4, 16, 2, 8, dtype=BF16), "value_cache", "shape is (4, 16, 2, 4)"),
    Case({"slots": torch.zeros(2, dtype=torch.int32)}, "slot_mapping", "shape is (3,)"),
    Case(
        {"slots": torch.tensor([0, 64, 1], dtype=torch.int32)},
        "slot_mapping",
        "values lie in [0, 63]",
    ),
]


def test_scatter_pa_kv_cache_values():
    c = pa_call()
    scatter_pa_kv_cache(**c)
    assert torch.equal(c["key_cache"].view(64, 2, 8)[[0, 17, 63]], c["key"]) and torch.equal(
        c["value_cache"].view(64, 2, 4)[[0, 17, 63]], c["value"]
    )
    with pytest.raises(OperatorMissing, match="npu_scatter_pa_kv_cache"):
        scatter_pa_kv_cache(**pa_call() | {"cache_mode": "PA_NZ"})


# ---------------------------------------------------------------- formats
def cast_call(rows=32, columns=64, dtype=BF16):
    return dict(tensor=torch.zeros(rows, columns, dtype=dtype), acl_format=29)


CAST = [
    Case(3, "acl_format", "a cast to format 3: not documented"),
    Case({"tensor": torch.zeros(64, dtype=BF16)}, "self", "at least 2 dimensions"),
    Case({"tensor": torch.zeros(32, 64)}, "self", "dtype is one of"),
    Case({}, "self", "tiles of 16 x 16", dict(rows=24)),
    Case({}, "self", "tiles of 16 x 16", dict(columns=72)),
    Case({}, "self", "tiles of 16 x 32", dict(columns=48, dtype=torch.int8)),
    Case({}, "self", "tiles of 16 x 64", dict(columns=32, dtype=torch.int32)),
    Case({"tensor": torch.zeros(64, 32, dtype=BF16).t()}, "self", "must be contiguous"),
]


OPERATORS = (
    Operator("npu_rotary_mul", rotary_mul, rotary_call, ROTARY),
    Operator("npu_interleave_rope", interleave_rope, interleave_call, INTERLEAVE),
    Operator("npu_mrope", mrope, mrope_call, MROPE),
    Operator("npu_scatter_nd_update_", scatter_nd_update, scatter_call, SCATTER),
    Operator("npu_scatter_pa_kv_cache", scatter_pa_kv_cache, pa_call, PA),
    Operator("npu_format_cast", check_format_cast, cast_call, CAST),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


def test_format_cast_takes():
    for dtype in (BF16, F16, torch.int8, torch.int32, torch.uint8):
        check_format_cast(**cast_call(dtype=dtype))
    check_format_cast(torch.zeros(3), 2)
    source, target = torch.randn(32, 64).to(BF16), torch.empty(32, 64, dtype=BF16)
    format_cast(source, SimpleNamespace(t=target, shape=target.shape, storage_shape=(4, 2, 16, 16)))
    assert torch.equal(source, target)  # a tag: memory stays as it is
