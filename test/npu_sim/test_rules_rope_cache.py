"""Rotary embeddings, cache writes and format casts: each rule broken once, and values."""

from types import SimpleNamespace

import pytest
import torch
from rule_cases import A2, A5, OLD, P310, Case, ids, on, refused

from npu_sim.operators.cache import scatter_nd_update, scatter_pa_kv_cache
from npu_sim.operators.format_cast import check_format_cast, format_cast
from npu_sim.operators.rope import (
    apply_rotary_pos_emb,
    apply_rotary_pos_emb_v1,
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
    Case("on the training series", {}, "product", "exists on", OLD),
    Case("interleaved on 310P", {}, "rotary_mode", "is 0 on 310P", P310, dict(dtype=F16, mode=1)),
    Case("D on 310P", {}, "input", "D is a multiple of 32", P310, TURNED_80 | dict(dtype=F16)),
    Case(
        "D too large on 310P",
        {},
        "input",
        "D is in [1, 128]",
        P310,
        dict(dtype=F16, x=(1, 2, 1, 160), r=(1, 2, 1, 160)),
    ),
    Case(
        "D too large on 950",
        {},
        "input",
        "D is in [1, 1024]",
        A5,
        dict(x=(1, 2, 1, 1026), r=(1, 2, 1, 1026)),
    ),
    Case("mode", {"mode": 2}, "rotary_mode", "is one of 0, 1"),
    Case("int", {"x": torch.ones(1, 6, 4, 32, dtype=torch.int32)}, "input", "dtype is one of"),
    Case("3-D", {"x": torch.ones(6, 4, 32, dtype=BF16)}, "input", "has 4 dimensions"),
    Case("empty", {"x": torch.ones(1, 0, 4, 32, dtype=BF16)}, "input", "empty tensors"),
    Case("NZ", {"cos": lambda c: View(c["cos"], 29)}, "r1", "storage format is ND"),
    Case("cos dtype", {"cos": lambda c: c["cos"].float()}, "r1", "dtype equals that of input"),
    Case(
        "D too large", {}, "input", "D is in [1, 895]", A2, dict(x=(1, 2, 1, 896), r=(1, 2, 1, 896))
    ),
    Case(
        "D odd",
        {
            "x": torch.ones(1, 6, 4, 31, dtype=BF16),
            "cos": torch.ones(1, 6, 1, 31, dtype=BF16),
            "sin": torch.ones(1, 6, 1, 31, dtype=BF16),
        },
        "input",
        "D is a multiple of 2",
    ),
    Case("sin shape", {"sin": lambda c: c["sin"][:, :3]}, "r2", "shape is (1, 6, 1, 32)"),
    Case(
        "cos shape",
        {"cos": torch.ones(1, 3, 1, 32, dtype=BF16), "sin": torch.ones(1, 3, 1, 32, dtype=BF16)},
        "r1",
        "shape is",
    ),
    Case(
        "1000 heads",
        {},
        "input",
        "B and N are less than 1000",
        A2,
        dict(x=(1, 2, 1000, 32), r=(1, 2, 1, 32)),
    ),
    Case(
        "B N in interleave mode",
        {},
        "input",
        "B * N is less than 1000",
        A2,
        dict(mode=1, x=(10, 2, 100, 32), r=(1, 2, 1, 32)),
    ),
    Case("cos above 1", {"cos": lambda c: c["cos"] * 2}, "r1", "values lie in [-1, 1]"),
    Case("sin above 1", {"sin": lambda c: c["sin"] * 2}, "r2", "values lie in [-1, 1]"),
]


@pytest.mark.parametrize("case", ROTARY, ids=ids(ROTARY))
def test_rotary_mul_refuses(case):
    torch.manual_seed(0)
    refused(rotary_mul, rotary_call, case, "npu_rotary_mul")


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


# ---------------------------------------------------------------- npu_apply_rotary_pos_emb
def apply_call(dtype=BF16, layout=1):
    cos, sin = angles(2, 3, 1, 64)
    c = dict(
        query=torch.randn(2, 3, 4, 64),
        key=torch.randn(2, 3, 2, 64),
        cos=torch.cat((cos, cos), -1),
        sin=torch.cat((sin, sin), -1),
    )
    c = {name: v.to(dtype) if layout == 1 else v.to(dtype).flatten(0, 1) for name, v in c.items()}
    return c | dict(layout=layout, rotary_mode="half")


APPLY = [
    Case("layout BNSD", {"layout": 2}, "layout", "is one of 1, 4"),
    Case("mode", {"rotary_mode": "interleave"}, "rotary_mode", "is one of 'half'"),
    Case("bfloat16 on 310P", {}, "query", "dtype is one of float16, float32", P310),
    Case("dims", {"layout": 4}, "query", "has 3 dimensions"),
    Case("empty", {"query": torch.empty(0, 3, 4, 64, dtype=BF16)}, "query", "empty tensors"),
    Case("NZ", {"key": lambda c: View(c["key"], 29)}, "key", "storage format is ND"),
    Case("dtype", {"cos": lambda c: c["cos"].float()}, "cos", "dtype equals that of query"),
    Case(
        "batch", {"cos": lambda c: c["cos"][:1]}, "cos", "leading dimensions equal those of query"
    ),
    Case("D", {"key": lambda c: c["key"][..., :32]}, "key", "the last dimension is 64 or 128"),
    Case(
        "key D",
        {"key": lambda c: torch.cat((c["key"], c["key"]), -1)},
        "key",
        "the last dimension is 64",
    ),
    Case("cos N", {"cos": lambda c: c["cos"].repeat(1, 1, 2, 1)}, "cos", "N is 1"),
    Case(
        "sin D",
        {"sin": lambda c: torch.cat((c["sin"], c["sin"]), -1)},
        "sin",
        "the last dimension is 64",
    ),
    Case(
        "partial",
        {
            "query": torch.ones(2, 3, 4, 128, dtype=BF16),
            "key": torch.ones(2, 3, 2, 128, dtype=BF16),
        },
        "cos",
        "smaller than the head: not documented",
    ),
]


@pytest.mark.parametrize("case", APPLY, ids=ids(APPLY))
def test_apply_rotary_refuses(case):
    refused(apply_rotary_pos_emb, apply_call, case, "npu_apply_rotary_pos_emb")


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("layout", [1, 4])
def test_apply_rotary_values(dtype, layout):
    c = apply_call(dtype, layout)
    references = [
        turned(c[n], c["cos"][..., :32], c["sin"][..., :32], True) for n in ("query", "key")
    ]
    apply_rotary_pos_emb_v1(c["query"], c["key"], c["cos"], c["sin"], layout)
    for n, reference in zip(("query", "key"), references, strict=False):
        assert (c[n].double() - reference).abs().max() <= TOLERANCE[dtype] * 4
    with on(A5), pytest.raises(OperatorMissing, match="npu_apply_rotary_pos_emb"):
        apply_rotary_pos_emb(**apply_call())


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
    Case("on 310P", {}, "product", "exists on", P310),
    Case("float32", {"x": torch.randn(2, 4, 3, 64)}, "x", "dtype is one of"),
    Case("cos dtype", {"cos": lambda c: c["cos"].half()}, "cos", "dtype equals that of x"),
    Case("3-D", {"x": torch.randn(4, 3, 64).to(BF16)}, "x", "has 4 dimensions"),
    Case("D", {"x": torch.randn(2, 4, 3, 32).to(BF16)}, "x", "D is 64"),
    Case("NZ", {"x": lambda c: View(c["x"], 29)}, "x", "storage format is ND"),
    Case("cos shape", {"cos": lambda c: c["cos"][:1]}, "cos", "shape is (2, 1, 3, 64)"),
    Case("sin shape", {"sin": lambda c: c["sin"][:, :, :1]}, "sin", "shape is (2, 1, 3, 64)"),
]


@pytest.mark.parametrize("case", INTERLEAVE, ids=ids(INTERLEAVE))
def test_interleave_rope_refuses(case):
    refused(interleave_rope, interleave_call, case, "npu_interleave_rope")


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
    Case("on 310P", {}, "product", "exists on", P310),
    Case(
        "positions float", {"positions": torch.ones(5)}, "positions", "dtype is one of int32, int64"
    ),
    Case(
        "positions 3-D",
        {"positions": torch.ones(1, 1, 5, dtype=torch.int64)},
        "positions",
        "has 1 to 2 dimensions",
    ),
    Case("two sections", {"mrope_section": [16, 16]}, "mrope_section", "its length is 3"),
    Case("cache_mode", {"cache_mode": 1}, "cache_mode", "'interleave': not documented"),
    Case("query int", {"query": torch.ones(5, 256, dtype=torch.int32)}, "query", "dtype is one of"),
    Case("query 3-D", {"query": torch.ones(5, 4, 64, dtype=BF16)}, "query", "has 2 dimensions"),
    Case("NZ", {"key": lambda c: View(c["key"], 29)}, "key", "storage format is ND"),
    Case(
        "cache dtype",
        {"cache": lambda c: c["cache"].float()},
        "cos_sin_cache",
        "dtype equals that of query",
    ),
    Case("rotary dimension", {}, "cos_sin_cache", "multiple of 32", A2, dict(rotary=48)),
    Case(
        "rotary dimension float32",
        {},
        "cos_sin_cache",
        "multiple of 16",
        A2,
        dict(rotary=24, dtype=F32),
    ),
    Case("head size", {}, "head_size", "multiple of 32", A2, dict(head=80)),
    Case("rotary above head", {}, "cos_sin_cache", "at most the head size", A2, dict(rotary=96)),
    Case("query width", {"query": torch.ones(5, 100, dtype=BF16)}, "query", "multiple of 64"),
    Case("key tokens", {"key": torch.ones(4, 128, dtype=BF16)}, "key", "number of tokens is 5"),
    Case(
        "positions shape",
        {"positions": torch.ones(4, dtype=torch.int64)},
        "positions",
        "shape is (5,)",
    ),
    Case(
        "sections without 2-D positions",
        {"mrope_section": [8, 12, 12]},
        "mrope_section",
        "with (3, T) positions and only then",
    ),
    Case(
        "sections sum",
        {"mrope_section": [8, 8, 16]},
        "mrope_section",
        "is one of [16, 24, 24], [24, 20, 20], [8, 12, 12]",
        A2,
        dict(sections=True),
    ),
    Case(
        "sections of another width",
        {},
        "mrope_section",
        "the sum is 16",
        A2,
        dict(sections=True, rotary=32),
    ),
    Case(
        "position out of the cache",
        {"positions": torch.full((5,), 20)},
        "positions",
        "values lie in [0, 19]",
    ),
]


@pytest.mark.parametrize("case", MROPE, ids=ids(MROPE))
def test_mrope_refuses(case):
    refused(mrope, mrope_call, case, "npu_mrope")


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
    Case("int32", {"target": torch.zeros(4, 5, 6, dtype=torch.int32)}, "input", "dtype is one of"),
    Case(
        "bfloat16 on 310P",
        {"target": torch.zeros(4, 5, 6, dtype=BF16)},
        "input",
        "dtype is one of float32, float16, bool",
        P310,
    ),
    Case("indices float", {"indices": torch.ones(3, 2)}, "indices", "dtype is one of int32, int64"),
    Case(
        "updates dtype",
        {"updates": torch.ones(3, 6, dtype=F16)},
        "updates",
        "dtype equals that of input",
    ),
    Case("0-D", {"target": torch.tensor(0.0)}, "input", "has 1 to 8 dimensions"),
    Case("NZ", {"target": lambda c: View(c["target"], 29)}, "input", "storage format is ND"),
    Case("indices 1-D", {"indices": torch.tensor([0, 1])}, "indices", "at least 2 dimensions"),
    Case(
        "indices too deep",
        {"indices": torch.zeros(3, 4, dtype=torch.int64)},
        "indices",
        "the last dimension is 1 to 3",
    ),
    Case("updates shape", {"updates": torch.ones(3, 5)}, "updates", "shape is (3, 6)"),
    Case(
        "out of bounds",
        {"indices": torch.tensor([[0, 1], [4, 4], [2, 0]])},
        "indices",
        "values lie in [0, 3]",
    ),
]


@pytest.mark.parametrize("case", SCATTER, ids=ids(SCATTER))
def test_scatter_nd_update_refuses(case):
    refused(scatter_nd_update, scatter_call, case, "npu_scatter_nd_update_")


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
    Case("on 310P", {}, "product", "exists on", P310),
    Case("cache_mode", {"cache_mode": "x"}, "cache_mode", "'Norm' or 'PA_NZ'"),
    Case("bool", {"key": torch.ones(3, 2, 8, dtype=torch.bool)}, "key", "dtype is one of"),
    Case("slots float", {"slots": torch.ones(3)}, "slot_mapping", "dtype is one of int32, int64"),
    Case(
        "strided",
        {"key": torch.randn(3, 8, 2).to(BF16).transpose(1, 2)},
        "key",
        "must be contiguous",
    ),
    Case(
        "NZ", {"key_cache": lambda c: View(c["key_cache"], 29)}, "key_cache", "storage format is ND"
    ),
    Case(
        "value dtype", {"value": lambda c: c["value"].half()}, "value", "dtype equals that of key"
    ),
    Case("key 4-D", {"key": lambda c: c["key"][None]}, "key", "has 3 dimensions"),
    Case("value 2-D", {"value": lambda c: c["value"][0]}, "value", "has 3 dimensions"),
    Case("value tokens", {"value": lambda c: c["value"][:2]}, "value", "shape is (3, 2, 4)"),
    Case("cache 3-D", {"key_cache": lambda c: c["key_cache"][0]}, "key_cache", "has 4 dimensions"),
    Case(
        "cache heads",
        {"key_cache": torch.zeros(4, 16, 1, 8, dtype=BF16)},
        "key_cache",
        "shape is (4, 16, 2, 8)",
    ),
    Case(
        "value cache",
        {"value_cache": torch.zeros(4, 16, 2, 8, dtype=BF16)},
        "value_cache",
        "shape is (4, 16, 2, 4)",
    ),
    Case(
        "slots shape", {"slots": torch.zeros(2, dtype=torch.int32)}, "slot_mapping", "shape is (3,)"
    ),
    Case(
        "slot out of the cache",
        {"slots": torch.tensor([0, 64, 1], dtype=torch.int32)},
        "slot_mapping",
        "values lie in [0, 63]",
    ),
]


@pytest.mark.parametrize("case", PA, ids=ids(PA))
def test_scatter_pa_kv_cache_refuses(case):
    refused(scatter_pa_kv_cache, pa_call, case, "npu_scatter_pa_kv_cache")


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
    Case("unknown format", {"acl_format": 3}, "acl_format", "a cast to format 3: not documented"),
    Case("1-D", {"tensor": torch.zeros(64, dtype=BF16)}, "self", "at least 2 dimensions"),
    Case("float32", {"tensor": torch.zeros(32, 64)}, "self", "dtype is one of"),
    Case("rows", {}, "self", "tiles of 16 x 16", A2, dict(rows=24)),
    Case("columns", {}, "self", "tiles of 16 x 16", A2, dict(columns=72)),
    Case("int8 columns", {}, "self", "tiles of 16 x 32", A2, dict(columns=48, dtype=torch.int8)),
    Case("int4 columns", {}, "self", "tiles of 16 x 64", A2, dict(columns=32, dtype=torch.int32)),
    Case("strided", {"tensor": torch.zeros(64, 32, dtype=BF16).t()}, "self", "must be contiguous"),
]


@pytest.mark.parametrize("case", CAST, ids=ids(CAST))
def test_format_cast_refuses(case):
    refused(check_format_cast, cast_call, case, "npu_format_cast")


def test_format_cast_takes():
    for dtype in (BF16, F16, torch.int8, torch.int32, torch.uint8):
        check_format_cast(**cast_call(dtype=dtype))
    check_format_cast(torch.zeros(3), 2)
    source, target = torch.randn(32, 64).to(BF16), torch.empty(32, 64, dtype=BF16)
    format_cast(source, SimpleNamespace(t=target, shape=target.shape, storage_shape=(4, 2, 16, 16)))
    assert torch.equal(source, target)  # a tag: memory stays as it is
