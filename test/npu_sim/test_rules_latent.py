"""Operators around attention over latent vectors, and its rope parts: each rule broken once, and
values against the formulas.
"""

import pytest
import test_rules_attention as attention
import torch
from rule_cases import A2, A3, A5, P310, Case, Operator, every_case, on, refused
from test_rules_rope_cache import TOLERANCE, angles, turned
from torch import Tensor

from npu_sim.operators.attention import Call, fused_attention
from npu_sim.operators.latent import (
    attention_update,
    kv_rmsnorm_rope_cache,
    transpose_batchmatmul,
)
from npu_sim.operators.rules import OperatorMissing
from npu_sim.operators.view import View

BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


# ---------------------------------------------------------------- npu_kv_rmsnorm_rope_cache
def kv_call(dtype=BF16, tokens=3):
    cos, sin = (torch.cat((x, x), -1).to(dtype) for x in angles(tokens, 1, 1, 64))
    return dict(
        kv=torch.randn(tokens, 1, 1, 576).to(dtype),
        gamma=torch.randn(512).to(dtype),
        cos=cos,
        sin=sin,
        index=torch.tensor([17, -1, 4]),
        k_cache=torch.zeros(2, 16, 1, 64, dtype=dtype),
        ckv_cache=torch.zeros(2, 16, 1, 512, dtype=dtype),
        k_scale=None,
        ckv_scale=None,
        k_offset=None,
        ckv_offset=None,
        epsilon=1e-5,
        mode=b"PA_BNSD",
        outputs=True,
        k_out=torch.empty(tokens, 1, 1, 64, dtype=dtype),
        ckv_out=torch.empty(tokens, 1, 1, 512, dtype=dtype),
    )


KV = [
    Case({}, "product", "exists on", soc=P310),
    Case(torch.zeros(3, 1, 1, 576), "kv", "dtype is one of"),
    Case(lambda t: t[0], "kv", "has 4 dimensions"),
    Case(torch.zeros(3, 2, 1, 576).to(BF16), "kv", "N is 1"),
    Case(torch.zeros(3, 1, 1, 96).to(BF16), "kv", "D is 576"),
    Case(torch.zeros(512), "gamma", "dtype equals that of kv"),
    Case(torch.zeros(64).to(BF16), "gamma", "shape is (512,)"),
    Case(lambda t: t[:2], "cos", "shape is (3, 1, 1, 64)"),
    Case(lambda t: t[:2], "sin", "shape is (3, 1, 1, 64)"),
    Case(Tensor.int, "index", "dtype is one of int64"),
    Case(lambda t: t[:2], "index", "shape is (3,)"),
    Case(lambda t: t + 15, "index", "values lie in"),
    Case(torch.tensor([4, 2, 4]), "index", "no two rows"),
    Case(lambda t: t[0], "k_cache", "has 4 dimensions"),
    Case(Tensor.half, "k_cache", "dtype equals"),
    Case(lambda t: t[:1], "ckv_cache", "shape is"),
    Case(torch.zeros(2, 16, 1, 1024).to(BF16)[..., ::2], "ckv_cache", "contiguous"),
    Case(
        {
            "k_cache": torch.zeros(2, 12, 1, 64).to(BF16),
            "ckv_cache": torch.zeros(2, 12, 1, 512).to(BF16),
        },
        "k_cache",
        "the block size",
    ),
]


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_kv_values(dtype):
    c = kv_call(dtype)
    kv_rmsnorm_rope_cache(**c)
    low, high = c["kv"].double().split([512, 64], -1)
    low = low / (low.square().mean(-1, keepdim=True) + 1e-5).sqrt() * c["gamma"].double()
    high = turned(c["kv"][..., 512:], c["cos"][..., :32], c["sin"][..., :32], False)
    high = torch.cat((high[..., 0::2], high[..., 1::2]), -1)
    for rows, cache, out in ((low, c["ckv_cache"], c["ckv_out"]), (high, c["k_cache"], c["k_out"])):
        assert (out.double() - rows).abs().max() <= 6 * TOLERANCE[dtype]
        for row, place in ((0, 17), (2, 4)):
            assert (cache[place // 16, place % 16] == out[row, 0]).all()
            cache[place // 16, place % 16] = 0
        assert not cache.any()  # the row with index -1 went nowhere


def test_kv_what_is_missing():
    for change in ({"mode": b"PA_NZ"}, {"k_scale": torch.ones(1)}):
        with pytest.raises(OperatorMissing, match="npu_kv_rmsnorm_rope_cache"):
            kv_rmsnorm_rope_cache(**(kv_call() | change))


# ---------------------------------------------------------------- npu_transpose_batchmatmul
def product_call(dtype=BF16):
    return dict(
        x1=torch.randn(5, 4, 32).to(dtype),
        x2=torch.randn(4, 32, 16).to(dtype),
        bias=None,
        scale=None,
        perm_x1=[1, 0, 2],
        perm_x2=[0, 1, 2],
        perm_y=[1, 0, 2],
        _math=0,
        split=1,
        out=torch.empty(5, 4, 16, dtype=dtype),
    )


PRODUCT = [
    Case({}, "product", "exists on", soc=P310),
    Case(torch.zeros(16), "bias", "is reserved"),
    Case({"x1": torch.ones(5, 4, 32, dtype=torch.int8)}, "input", "dtype is one of"),
    Case({"x2": Tensor.half}, "weight", "dtype equals"),
    Case({"x1": lambda t: t[0]}, "input", "has 3 dimensions"),
    Case({"x2": lambda t: t[0]}, "weight", "has 3 dimensions"),
    Case([2, 0, 1], "perm_x1", "is one of"),
    Case([1, 0, 2], "perm_x2", "is one of"),
    Case([0, 1, 2], "perm_y", "is one of"),
    Case({"x2": lambda t: t[:2]}, "weight", "the batch is 4"),
    Case({"x2": lambda t: t[:, :8]}, "weight", "K is 32"),
    Case(
        {"x1": torch.zeros(1, 65536, 1).to(BF16), "x2": torch.zeros(65536, 1, 1).to(BF16)},
        "input",
        "B",
    ),
    Case({"x2": torch.zeros(4, 32, 65536).to(BF16)}, "weight", "N"),
    Case(
        {"x1": torch.zeros(5, 4, 65536).to(BF16), "x2": torch.zeros(4, 65536, 1).to(BF16)},
        "input",
        "K",
    ),
]


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_product_values(dtype):
    c = product_call(dtype)
    transpose_batchmatmul(**c)
    expected = torch.einsum("mbk,bkn->mbn", c["x1"].double(), c["x2"].double())
    assert (c["out"].double() - expected).abs().max() <= 20 * TOLERANCE[dtype]


def test_product_what_is_missing():
    with pytest.raises(OperatorMissing, match="npu_transpose_batchmatmul"):
        transpose_batchmatmul(**(product_call() | {"split": 2}))


# ---------------------------------------------------------------- npu_attention_update
def update_call(dtype=F32, parts=2, rows=6, size=128, with_lse=True):
    return dict(
        lse=[torch.randn(rows) for _ in range(parts)],
        local_out=[torch.randn(rows, size).to(dtype) for _ in range(parts)],
        update_type=int(with_lse),
        out=torch.empty(rows, size, dtype=dtype),
        lse_out=torch.empty(rows) if with_lse else None,
    )


def _second(name, change):
    return {name: lambda tensors: [tensors[0], change(tensors[1])]}


def _sized(size):
    return dict(size=size)


UPDATE = [
    Case({}, "product", "exists on", soc=P310),
    Case({"lse": [], "local_out": []}, "lse", "the number of tensors"),
    Case({}, "lse", "the number of tensors is in [1, 128]", dict(parts=129)),
    Case({}, "lse", "the number of tensors is in [1, 16]", dict(parts=17), soc=A5),
    Case({"local_out": lambda parts: parts[:1]}, "local_out", "the number of tensors is 2"),
    Case(2, "update_type", "is one of 0, 1"),
    Case(None, "lse_out", "is required with update_type 1"),
    Case({"update_type": 0}, "lse_out", "goes with update_type 1"),
    Case({"local_out": [torch.zeros(6, 128).double()] * 2}, "local_out", "dtype is one of"),
    Case({"local_out": [torch.zeros(768)] * 2}, "local_out", "has 2 dimensions"),
    Case({}, "local_out", "D is in [8, 512]", _sized(520)),
    Case({}, "local_out", "D is in [8, 512]", _sized(0)),
    Case({}, "local_out", "D is a multiple of 8", _sized(20)),
    Case(_second("lse", Tensor.half), "lse", "dtype is one of float32"),
    Case(_second("local_out", Tensor.half), "local_out", "dtype is one of float32"),
    Case({"out": Tensor.half}, "out", "dtype is one of float32"),
    Case({"lse_out": Tensor.half}, "lse_out", "dtype is one of float32"),
    Case(_second("lse", lambda t: t[:3]), "lse", "shape is (6,)"),
    Case(_second("lse", lambda t: t[:, None]), "lse", "shape is (6,)"),
    Case(_second("local_out", lambda t: t[:, :64]), "local_out", "shape is (6, 128)"),
    Case({"out": torch.empty(6, 64)}, "out", "shape is (6, 128)"),
    Case({"lse_out": torch.empty(6, 1)}, "lse_out", "shape is (6,)"),
    Case(_second("lse", lambda t: torch.cat((t, t))[::2]), "lse", "contiguous"),
    Case(_second("local_out", lambda t: t.t().contiguous().t()), "local_out", "contiguous"),
    Case({"out": torch.empty(128, 6).t()}, "out", "contiguous"),
    Case(_second("local_out", lambda t: View(t, 29)), "local_out", "storage format is ND"),
]


@pytest.mark.parametrize("soc", [A2, A3, A5])
@pytest.mark.parametrize("dtype", [F32, F16, BF16])
@pytest.mark.parametrize("parts", [1, 3])
def test_update_values(soc, dtype, parts):
    """Attention to parts of the keys, joined, is attention to all of them."""
    scores, values = torch.randn(6, 12).double(), torch.randn(12, 128).double()
    keys = torch.arange(12).chunk(parts)
    for with_lse in (True, False):
        c = update_call(dtype, parts, with_lse=with_lse)
        c["lse"] = [scores[:, k].logsumexp(1).float() for k in keys]
        c["local_out"] = [(scores[:, k].softmax(1) @ values[k]).to(dtype) for k in keys]
        with on(soc):
            attention_update(**c)
        error = c["out"].double() - scores.softmax(1) @ values
        assert error.abs().max() <= 4 * TOLERANCE[dtype]
        if with_lse:
            assert torch.allclose(c["lse_out"].double(), scores.logsumexp(1), atol=1e-5)


def test_update_leaves_out_what_saw_nothing():
    c = update_call()
    c["lse"][1][:4], c["local_out"][1][:4] = -torch.inf, 0
    attention_update(**c)
    assert torch.equal(c["out"][:4], c["local_out"][0][:4])
    assert torch.equal(c["lse_out"][:4], c["lse"][0][:4])
    assert not torch.equal(c["out"][4:], c["local_out"][0][4:])


def test_update_of_no_rows():
    attention_update(**update_call(rows=0))


# ---------------------------------------------------------------- rope parts of fused attention
def _with_parts(c):
    c["q_rope"] = torch.randn(*c["query"].shape[:-1], 64).to(BF16)
    c["k_rope"] = torch.randn(*c["keys"][0].shape[:-1], 64).to(BF16)
    return c


def pages_call(size=512, kv_heads=1, paged=16):
    return _with_parts(attention.call(s=1, n=4, nk=kv_heads, d=size, paged=paged))


def tnd_call(size=128, kv_heads=4):
    return _with_parts(attention.call("TND", n=4, nk=kv_heads, d=size))


def several_call(queries=(2, 4), sparse=3, size=512):
    """As drafted tokens are checked: the last tokens of each sequence, over pages by head."""
    return _with_parts(
        attention.call(
            "TND", n=4, nk=1, d=size, paged=16, heads_first=True, kv=18, q_lengths=list(queries),
            sparse=sparse, mask=attention.CAUSAL if sparse else None,
        )
    )  # fmt: skip


def with_rope(sequences=None, queries=None, **arguments):
    fused_attention(Call(attention.NAME, **arguments))


ROPE = [
    Case({"q_rope": None}, "query_rope", "is given with key_rope"),
    Case({"k_rope": None}, "key_rope", "is given with query_rope"),
    Case({"q_rope": Tensor.half}, "query_rope", "dtype equals"),
    Case({"q_rope": torch.zeros(2, 1, 4, 128).to(BF16)[..., ::2]}, "query_rope", "contiguous"),
    Case({"q_rope": lambda t: t[0]}, "query_rope", "has 4 dimensions"),
    Case({"q_rope": torch.zeros(2, 1, 4, 32).to(BF16)}, "query_rope", "shape is"),
    Case({"k_rope": lambda t: t[:1]}, "key_rope", "shape is"),
    Case(
        {
            "heads": 3,
            "query": lambda t: t[:, :, :3].contiguous(),
            "q_rope": lambda t: t[:, :, :3].contiguous(),
            "out": lambda t: t[:, :, :3].contiguous(),
        },
        "num_heads",
        "is one of",
    ),
]
ROPE_PAGES = [
    Case({}, "query", "D with rope parts over pages", dict(size=128)),
    Case({}, "num_key_value_heads", "over pages", dict(kv_heads=2)),
    Case({}, "block_size", "is one of", dict(paged=32)),
    Case({}, "block_table", "latent vectors", dict(paged=0)),
]
ROPE_TND = [
    Case({"k_rope": lambda t: t[:1]}, "key_rope", "shape is"),
    Case({}, "query", "D with rope parts in layout TND", dict(size=256)),
    Case({}, "num_key_value_heads", "in layout TND", dict(kv_heads=2)),
]
ROPE_SEVERAL = [
    Case({}, "query", "1 to 16 queries a sequence", dict(queries=(17, 1))),
    Case({}, "query", "1 to 16 queries a sequence", dict(queries=(0, 1))),
    Case({}, "sparse_mode", "several queries over latent vectors", dict(sparse=0)),
    Case({}, "query", "D with rope parts over pages", dict(size=128)),
    Case({"want_lse": True}, "softmax_lse_flag", "over latent vectors"),
]


OPERATORS = (
    Operator("npu_kv_rmsnorm_rope_cache", kv_rmsnorm_rope_cache, kv_call, KV),
    Operator("npu_transpose_batchmatmul", transpose_batchmatmul, product_call, PRODUCT),
    Operator("npu_attention_update", attention_update, update_call, UPDATE),
    Operator(attention.NAME, with_rope, pages_call, ROPE + ROPE_PAGES),
    Operator(attention.NAME, with_rope, tnd_call, ROPE_TND),
    Operator(attention.NAME, with_rope, several_call, ROPE_SEVERAL),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


@pytest.mark.parametrize("build", [pages_call, tnd_call])
def test_rope_values(build):
    c = build()
    with_rope(**c)
    for i, (keys, values) in enumerate(c["sequences"]):
        if build is pages_call:
            q = torch.cat((c["query"], c["q_rope"]), -1)[i]
            rope = c["k_rope"][c["block_table"][i].long()].flatten(0, 1)[: len(keys), None]
            found = c["out"][i]
        else:
            q = torch.cat((c["query"], c["q_rope"]), -1)[4 * i : 4 * i + 4]
            rope = c["k_rope"][7 * i : 7 * i + 7]
            found = c["out"][4 * i : 4 * i + 4]
        k = torch.cat((keys, rope), -1)
        expected, _ = attention.reference(q, k, values, c["scale"], lambda i, j: True)
        assert (found.double() - expected).abs().max() <= 2e-2


@pytest.mark.parametrize("dtype", [BF16, torch.float16])
def test_rope_values_of_several_queries(dtype):
    c = several_call()
    for name in ("query", "out", "q_rope", "k_rope"):
        c[name] = c[name].to(dtype)
    c["keys"], c["values"] = ([t.to(dtype) for t in c[name]] for name in ("keys", "values"))
    with_rope(**c)
    q = torch.cat((c["query"], c["q_rope"]), -1).split([2, 4])
    found = c["out"].split([2, 4])
    for i, (keys, values) in enumerate(c["sequences"]):
        rope = c["k_rope"][c["block_table"][i].long()].flatten(0, 2)[: len(keys), None]
        k, behind = torch.cat((keys, rope), -1), len(keys) - len(q[i])
        expected, _ = attention.reference(
            q[i], k, values, c["scale"], lambda a, b, behind=behind: b <= a + behind
        )
        assert (found[i].double() - expected).abs().max() <= 2e-2


def test_rope_what_is_missing():
    with pytest.raises(OperatorMissing, match="rope parts"):
        with_rope(**(pages_call() | {"sparse": 4}))
