"""Fused attention: each rule broken once, and values against attention written out position by
position.
"""

import math
from functools import partial

import pytest
import torch
from rule_cases import A2, A3, A5, OLD, P310, Case, Operator, every_case, on, refused
from torch import Tensor

from npu_sim.operators.attention import Call, fused_attention, v3, v4, v5
from npu_sim.operators.rules import OperatorMissing, OperatorRuleError
from npu_sim.operators.view import View

NAME = "npu_fused_infer_attention_score"
V5 = f"{NAME} (aclnn V5)"
BF16, F16, F32, I32 = torch.bfloat16, torch.float16, torch.float32, torch.int32
INF = 2147483647
CAUSAL = torch.ones(2048, 2048, dtype=torch.bool).triu(1)


def reference(q, k, v, scale, visible, sink=None):
    """q (S, N, D), k and v (L, Nk, .), visible(i, j) -> bool;

    one row and one head at a time, in float64.
    """
    s, n, _ = q.shape
    out = torch.zeros(s, n, v.shape[2], dtype=torch.float64)
    lse = torch.full((s, n), -math.inf, dtype=torch.float64)
    for i in range(s):
        seen = [j for j in range(k.shape[0]) if visible(i, j)]
        for h in range(n):
            group = h // (n // k.shape[1])
            logits = torch.tensor(
                [(q[i, h].double() @ k[j, group].double()).item() * scale for j in seen]
                + ([sink[h].item()] if sink is not None else []),
                dtype=torch.float64,
            )
            if not len(logits):
                continue
            weights = logits.softmax(0)
            lse[i, h] = logits.logsumexp(0)
            for w, j in zip(weights, seen, strict=False):
                out[i, h] += w * v[j, group].double()
    return out, lse


def laid_out(x, layout):
    """(B, S, N, D) in another layout."""
    return {"BSH": x.flatten(2), "BSND": x}.get(layout, x.transpose(1, 2).contiguous())


def call(
    layout="BSND", b=2, s=4, kv=7, n=4, nk=2, d=16, dv=None, dtype=BF16, paged=0, lengths=None,
    q_lengths=None, sparse=0, mask=None, heads_first=False, lse=False,
):  # fmt: skip
    """A right call.

    paged: block size, 0 for whole keys.  The dense keys of each sequence are under 'sequences',
    queries under 'queries'.
    """
    generator = torch.Generator().manual_seed(7)
    dv = dv or d
    rand = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    nans = lambda *shape: torch.full(shape, torch.nan).to(dtype)  # noqa: E731
    lengths = lengths or [kv] * b
    counts = q_lengths or [s] * b
    keys, values = (
        [rand(length, nk, d) for length in lengths],
        [rand(length, nk, dv) for length in lengths],
    )
    table = None
    if paged:
        per = max(-(-length // paged) for length in lengths)
        blocks = b * per + 1
        table = torch.randperm(blocks, generator=generator)[: b * per].view(b, per).to(I32)
        pages = [nans(blocks, paged, nk, w) for w in (d, dv)]
        for i in range(b):
            for page, whole in zip(pages, (keys[i], values[i]), strict=False):
                for j in range(lengths[i]):
                    page[table[i, j // paged], j % paged] = whole[j]
        key, value = (
            p.transpose(1, 2).contiguous() if heads_first else p.flatten(2) for p in pages
        )
    elif layout == "TND":
        key, value = torch.cat(keys), torch.cat(values)
    else:
        most = max(lengths)
        key, value = (
            laid_out(
                torch.stack([torch.cat((w, nans(most - len(w), *w.shape[1:]))) for w in ws]), layout
            )
            for ws in (keys, values)
        )
    if layout == "TND":
        queries = [rand(c, n, d) for c in counts]
        query, q_len = torch.cat(queries), torch.tensor(counts).cumsum(0).tolist()
        out, lse_shape = nans(sum(counts), n, dv), (sum(counts), n, 1)
        kv_len = lengths if paged else torch.tensor(lengths).cumsum(0).tolist()
    else:
        whole = rand(b, s, n, d)
        queries = [whole[i, : counts[i]] for i in range(b)]
        query, q_len, kv_len = laid_out(whole, layout), q_lengths, lengths
        out, lse_shape = laid_out(nans(b, s, n, dv), layout.rpartition("_")[2]), (b, n, s, 1)
    return dict(
        query=query,
        keys=[key],
        values=[value],
        mask=mask,
        q_lengths=q_len,
        kv_lengths=kv_len,
        block_table=table,
        heads=n,
        scale=d**-0.5,
        before=INF,
        after=INF,
        layout=layout,
        kv_heads=nk,
        sparse=sparse,
        inner_precise=0,
        block_size=paged,
        want_lse=lse,
        out=out,
        lse=torch.empty(lse_shape if lse else 1),
        sink=None,
        sequences=list(zip(keys, values, strict=False)),
        queries=queries,
    )


def fused(sequences=None, queries=None, name=NAME, **arguments):
    fused_attention(Call(name, **arguments))


def one(name, change):
    return {name: lambda tensors: [change(tensors[0])]}


PAGED, DECODE = dict(paged=128), dict(s=1, paged=16)
TND, TNDP = dict(layout="TND", d=128), dict(layout="TND", d=128, paged=16)
SPARSE = dict(sparse=3, mask=CAUSAL)
FUSED = (
    Case({}, "product", "exists on", soc=P310),
    Case({"keys": lambda t: t * 2}, "key", "one tensor each"),
    Case(Tensor.float, "query", "dtype is one of float16, bfloat16"),
    Case({}, "query", "is bfloat16 in layout TND", TND | dict(dtype=F16)),
    Case(one("keys", Tensor.half), "key", "dtype equals that of query"),
    Case(one("values", Tensor.half), "value", "dtype equals that of query"),
    Case({"out": Tensor.half}, "attention_out", "dtype equals that of query"),
    Case(lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "query", "must be contiguous"),
    Case(
        one("keys", lambda k: k.transpose(1, 2).contiguous().transpose(1, 2)),
        "key",
        "must be contiguous",
    ),
    Case(one("keys", lambda k: View(k, 29)), "key", "storage format is ND"),
    Case({"heads": 257}, "num_heads", "it is in [1, 256]"),
    Case({"kv_heads": 3}, "num_key_value_heads", "divides num_heads"),
    Case({"heads": 130, "kv_heads": 2}, "num_key_value_heads", "at most 64 times"),
    Case(lambda t: t[0], "query", "has 4 dimensions"),
    Case(lambda t: t[..., :62].contiguous(), "query", "multiple of 4", dict(layout="BSH")),
    Case({"heads": 2}, "query", "number of heads is 2"),
    Case({}, "input_layout", "more than one query", dict(layout="BNSD_BSND", s=1)),
    Case(
        torch.zeros(1, dtype=BF16).expand(65537, 1, 4, 16).contiguous(),
        "query",
        "B is in [1, 65536]",
    ),
    Case({}, "query", "D is in [1, 512]", dict(d=528)),
    Case({}, "query", "D is a multiple of 16", dict(d=24)),
    Case({}, "query", "N * D is less than 65535", dict(n=128, nk=2, d=512, s=2, b=1)),
    Case(torch.zeros(65537, 4, 128, dtype=BF16), "query", "T is in [1, 65536]", TND),
    Case({"q_lengths": None}, "actual_seq_lengths", "is required in layout TND", TND),
    Case({"q_lengths": [8, 4]}, "actual_seq_lengths", "do not decrease", TND),
    Case({"q_lengths": [4, 9]}, "actual_seq_lengths", "end within T = 8", TND),
    Case({"q_lengths": [1, 1, 1]}, "actual_seq_lengths", "has 1 or at least 4 values", dict(b=4)),
    Case({"q_lengths": [5, 1]}, "actual_seq_lengths", "lie in [0, S = 4]"),
    Case({}, "query", "in layout TND are 128, 192, 256", dict(layout="TND", d=64)),
    Case({}, "value", "not 192 with grouped heads", dict(layout="TND", d=192)),
    Case(Tensor.long, "block_table", "dtype is one of int32", PAGED),
    Case(lambda t: t[0], "block_table", "has 2 dimensions", PAGED),
    Case(lambda t: t[:1], "block_table", "the batch is 2", PAGED),
    Case({"kv_lengths": None}, "actual_seq_lengths_kv", "is required with block_table", PAGED),
    Case({}, "block_size", "128, 256, 384 or 512", dict(paged=64)),
    Case({}, "block_size", "multiple of 16", dict(s=1, paged=24)),
    Case(1024, "block_size", "up to 512", DECODE),
    Case(2048, "block_size", "up to 1024", TNDP),
    Case(one("keys", lambda k: k[:, None]), "key", "has 3 dimensions", PAGED),
    Case(one("values", lambda v: v[:1]), "value", "number of blocks is 3", PAGED),
    Case(
        one("values", lambda v: v.unflatten(2, (2, 128))),
        "value",
        "same number of dimensions",
        TNDP,
    ),
    Case(
        {
            "kv_heads": 128,
            "heads": 128,
            "query": torch.zeros(2, 1, 128, 512, dtype=BF16),
            "keys": [torch.zeros(3, 16, 65536, dtype=BF16)],
            "values": [torch.zeros(3, 16, 65536, dtype=BF16)],
        },
        "key",
        "at most 65535",
        DECODE,
    ),
    Case(one("keys", lambda k: k[:, :16].contiguous()), "key", "the block size is 128", PAGED),
    Case(one("keys", lambda k: k[..., :31].contiguous()), "key", "multiple of 2", PAGED),
    Case(
        one("keys", lambda k: k[:, :1].contiguous()),
        "key",
        "shape is (blocks, 2, 16, D)",
        TNDP | dict(heads_first=True),
    ),
    Case(
        {
            "keys": [torch.zeros(1, dtype=BF16)[:0].view(0, 16, 32).expand(0, 16, 32)],
            "values": [torch.zeros(0, 16, 32, dtype=BF16)],
        },
        "block_table",
        "values lie in [0, -1]",
        DECODE,
    ),
    Case(one("keys", lambda k: k[..., :16].contiguous()), "key", "D is 16", PAGED),
    Case(
        one("values", lambda v: torch.cat((v, v), -1)), "value", "shape equals that of key", PAGED
    ),
    Case(
        {"kv_lengths": [7, 7, 7]},
        "actual_seq_lengths_kv",
        "has 1 or at least 4 values",
        dict(b=4, paged=128),
    ),
    Case({"kv_lengths": [7, 129]}, "actual_seq_lengths_kv", "what the block table holds", PAGED),
    Case(lambda t: t + 3, "block_table", "values lie in [0, 2]", PAGED),
    Case({"kv_lengths": None}, "actual_seq_lengths_kv", "is required in layout TND", TND),
    Case({"kv_lengths": [14]}, "actual_seq_lengths_kv", "number of values is 2", TND),
    Case({"kv_lengths": [7, 15]}, "actual_seq_lengths_kv", "end within 14", TND),
    Case({"kv_heads": 4}, "key", "shape is (T, 4, D)", TND),
    Case(one("keys", lambda k: k[0]), "key", "has 3 dimensions", dict(layout="BSH")),
    Case(one("keys", lambda k: k[0]), "key", "has 4 dimensions"),
    Case(one("keys", lambda k: k[0]), "key", "has 4 dimensions", dict(layout="BNSD")),
    Case(
        {"keys": lambda t: [torch.cat((t[0],) * 2)], "values": lambda t: [torch.cat((t[0],) * 2)]},
        "key",
        "the batch is 2",
    ),
    Case({"kv_heads": 4}, "key", "number of heads is 4"),
    Case(one("values", lambda v: v[:, :3].contiguous()), "value", "shape equals that of key"),
    Case(
        {"kv_lengths": [7, 7, 7]}, "actual_seq_lengths_kv", "has 1 or at least 4 values", dict(b=4)
    ),
    Case({"kv_lengths": [7, 8]}, "actual_seq_lengths_kv", "lie in [0, 7]"),
    Case({"mask": CAUSAL.float()}, "atten_mask", "dtype is one of bool, int8, uint8", SPARSE),
    Case({"mask": ~CAUSAL.t()}, "atten_mask", "must be contiguous", SPARSE),
    Case(4, "inner_precise", "it is in [0, 3]"),
    Case(2, "inner_precise", "it where S is 1 is in [0, 1]", DECODE),
    Case({"mask": torch.zeros(2, 8, dtype=torch.bool)}, "atten_mask", "at least 16", DECODE),
    Case({"sparse": 5}, "sparse_mode", "is one of 0, 1, 2, 3, 4"),
    Case({"mask": None}, "atten_mask", "is required with sparse_mode 2, 3 and 4", SPARSE),
    Case(
        {"mask": CAUSAL[:1024, :1024].contiguous()}, "atten_mask", "shape is (2048, 2048)", SPARSE
    ),
    Case({"mask": ~CAUSAL}, "atten_mask", "one above the diagonal", SPARSE),
    Case({}, "actual_seq_lengths", "no sequence has more queries than keys", dict(kv=3, **SPARSE)),
    Case({"sparse": 1}, "atten_mask", "is required with sparse_mode 1"),
    Case({"mask": torch.zeros(4, 6, dtype=torch.bool)}, "atten_mask", "K >= 7"),
    Case(
        {"mask": torch.zeros(4, 7, dtype=torch.bool)},
        "atten_mask",
        "takes none with sparse_mode 0",
        TND,
    ),
    Case({"out": lambda t: t[:1]}, "attention_out", "shape is (2, 4, 4, 16)"),
    Case({"sink": torch.zeros(4)}, "learnable_sink", "dtype equals that of query"),
    Case({"sink": torch.zeros(2, dtype=BF16)}, "learnable_sink", "shape is (4,)"),
    Case({"sink": torch.zeros(4, dtype=BF16)}, "value", "D is 64 or 128"),
    Case(
        {"sink": torch.zeros(4, dtype=BF16), "inner_precise": 1},
        "inner_precise",
        "it, beside a sink, is 0",
        dict(d=64),
    ),
    Case(1, "inner_precise", "it is in [0, 0]", TND),
    Case({"sparse": 2, "mask": CAUSAL}, "sparse_mode", "is one of 0, 3, 4", TND),
)


ON_950 = (
    Case(
        {"mask": torch.zeros(4, 7, dtype=torch.bool), "sparse": 1},
        "atten_mask",
        "has 3 or 4 dimensions",
        soc=A5,
    ),
)


OPERATORS = (
    Operator(NAME, fused, call, FUSED),
    Operator(V5, partial(fused, name=V5), call, ON_950, soc=A5),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


def test_pages_of_more_elements_than_int32_counts():
    huge = torch.empty(2**20, 128, 16, dtype=BF16)  # 4 GiB of addresses, none of it touched
    c = call(s=1, paged=128, n=2, nk=1)
    case = Case({"keys": [huge], "values": [huge]}, "key", "fits in int32")
    refused(Operator(NAME, fused, lambda: c, ()), case)


def visible_of(sparse, mask, s, kv, before=INF, after=INF):
    last = kv - s
    return {
        0: (lambda i, j: mask is None or not mask[i, j]),
        1: (lambda i, j: not mask[i, j]),
        2: (lambda i, j: j <= i),
        3: (lambda i, j: j <= i + last),
        4: (lambda i, j: i + last - before <= j <= i + last + after),
    }[sparse]


def outputs(c):
    """One (S, N, Dv) a sequence."""
    n, out, start = c["heads"], c["out"], 0
    found = []
    for i, q in enumerate(c["queries"]):
        s = q.shape[0]
        if c["layout"] == "TND":
            found.append(out[start : start + s])
            start += s
        elif c["layout"] == "BNSD":
            found.append(out[i].transpose(0, 1)[:s])
        else:
            found.append(out[i].unflatten(-1, (n, -1))[:s] if c["layout"] == "BSH" else out[i, :s])
    return found


def check(c, sparse=0, mask=None, before=INF, after=INF, sink=None):
    worst = 2e-2 if c["query"].dtype == BF16 else 3e-3
    for found, q, (k, v) in zip(outputs(c), c["queries"], c["sequences"], strict=False):
        visible = visible_of(sparse, mask, q.shape[0], k.shape[0], before, after)
        expected, _ = reference(q, k, v, c["scale"], visible, sink)
        assert (found.double() - expected).abs().max() <= worst * max(1, expected.abs().max())


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD", "BNSD_BSND"])
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("paged", [0, 128])
def test_prefill_values(layout, dtype, paged):
    c = call(
        layout=layout,
        dtype=dtype,
        paged=paged,
        lengths=[9, 5],
        q_lengths=[4, 3],
        heads_first=layout.startswith("BNSD"),
        **SPARSE,
    )
    fused(**c)
    check(c, 3)
    assert not c["out"].isnan().any()  # rows behind the shorter sequence are zero


@pytest.mark.parametrize("layout", ["BSH", "BSND", "BNSD"])
@pytest.mark.parametrize("soc", [A2, A3, A5])
def test_decode_values(layout, soc):
    c = call(layout=layout, s=1, paged=16, lengths=[20, 33])
    name = V5 if soc == A5 else NAME
    with on(soc):
        fused(**c, name=name)
    check(c)
    c = call(layout=layout, s=1, kv=9)
    mask = torch.rand(9) > 0.5
    mask[0] = False
    with on(soc):
        fused(**c | {"mask": mask.expand(2, 1, 9).contiguous()}, name=name)
    check(c, 0, mask.expand(1, 9))


@pytest.mark.parametrize("paged,heads_first", [(0, False), (16, False), (128, True)])
@pytest.mark.parametrize("d,dv", [(128, 128), (192, 128)])
def test_tnd_values(paged, heads_first, d, dv):
    c = call(
        layout="TND",
        d=d,
        dv=dv,
        paged=paged,
        heads_first=heads_first,
        lengths=[18, 5],
        q_lengths=[2, 5],
        **SPARSE,
        lse=True,
    )
    fused(**c)
    check(c, 3)
    start = 0
    for q, (k, v) in zip(c["queries"], c["sequences"], strict=False):
        _, lse = reference(q, k, v, c["scale"], visible_of(3, None, q.shape[0], k.shape[0]))
        assert torch.allclose(
            c["lse"][start : start + q.shape[0], :, 0].double(), lse, rtol=1e-4, atol=1e-3
        )
        start += q.shape[0]


def test_a_row_that_sees_nothing():
    """Its sum is marked as invalid, by infinity."""
    c = call("TND", d=128, lengths=[5, 0], q_lengths=[2, 2], lse=True)
    fused(**c)
    assert (c["lse"][2:] == math.inf).all() and c["lse"][:2].isfinite().all()
    assert not c["out"][2:].any()


def test_masks():
    c = call()
    fused(**c)
    check(c)
    mask = torch.rand(4, 7) > 0.6
    mask[:, 0] = False
    for sparse in (0, 1):
        c = call(sparse=sparse, mask=mask)
        fused(**c)
        check(c, sparse, mask)
    c = call(sparse=0, mask=torch.zeros(4, 7, dtype=torch.bool)) | {"before": 1, "after": 2}
    fused(**c)
    check(c, 0, torch.tensor([[not (i - 1 <= j <= i + 2) for j in range(7)] for i in range(4)]))
    c = call(sparse=2, mask=CAUSAL)
    fused(**c)
    check(c, 2)
    c = call(sparse=4, mask=CAUSAL.to(torch.int8)) | {"before": 2, "after": 0}
    fused(**c)
    check(c, 4, before=2, after=0)


def test_sink_and_lse_and_single_lengths():
    sink = torch.randn(4).to(BF16)
    c = call(lse=True, d=64) | {"sink": sink, "kv_lengths": [7], "q_lengths": [4]}
    fused(**c)
    check(c, sink=sink)
    _, lse = reference(c["queries"][1], *c["sequences"][1], c["scale"], lambda i, j: True, sink)
    assert torch.allclose(c["lse"][1, :, :, 0].t().double(), lse, rtol=1e-4, atol=1e-3)


def test_fused_entry_points_and_what_is_missing():
    c = call(s=1, paged=16)
    # the 32 optional arguments of v3 before the number of heads
    head = [c["query"], c["keys"], c["values"], *[None] * 3, c["kv_lengths"], *[None] * 7]
    head += [c["block_table"], *[None] * 12]
    numbers = [c["heads"], c["scale"], INF, INF, "BSND", c["kv_heads"], 0, 0, 16, 0, False, 0, 0]
    for entry, more, tail, own, others in (
        (v3, [], [], (A2, A3), (A5, P310, OLD)),
        (v4, [None] * 2, [0], (A2, A3), (A5, P310, OLD)),
        (v5, [None] * 4, [0, 0], (A5,), (A2, A3, P310, OLD)),
    ):
        for soc in own:
            c["out"].fill_(torch.nan)
            with on(soc):
                entry(*head, *more, *numbers, *tail, c["out"], c["lse"])
            check(c)
        for soc in others:
            with on(soc), pytest.raises(OperatorRuleError, match="'product'"):
                entry(*head, *more, *numbers, *tail, c["out"], c["lse"])
        broken = [*head[:3], torch.zeros(1), *head[4:]]  # pse_shift
        with pytest.raises(OperatorMissing, match=NAME):
            entry(*broken, *more, *numbers, *tail, c["out"], c["lse"])
    with pytest.raises(OperatorMissing, match="NTD"):
        fused(**call() | {"layout": "NTD"})
    with pytest.raises(OperatorMissing, match="int8"):
        fused(**call() | {"keys": [torch.zeros(2, 7, 2, 16, dtype=torch.int8)]})
