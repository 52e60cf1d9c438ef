"""ATB's attention and cache writes: each rule broken once, and values."""

import pytest
import torch
from rule_cases import A5, P310, Case, Operator, every_case, refused
from test_rules_attention import BF16, F16, I32, call, reference
from torch import Tensor

from npu_sim.operators import atb
from npu_sim.operators.view import View


def store_call(dtype=BF16):
    return dict(
        key=torch.randn(3, 2, 16).to(dtype),
        value=torch.randn(3, 2, 16).to(dtype),
        key_cache=torch.zeros(4, 16, 2, 16, dtype=dtype),
        value_cache=torch.zeros(4, 16, 2, 16, dtype=dtype),
        slot_indices=torch.tensor([5, 0, 63], dtype=I32),
    )


STORE = (
    Case({}, "product", "exists on", soc=P310),
    Case({}, "product", "exists on", soc=A5),
    Case(torch.randn(3, 2, 16), "key", "dtype is one of"),
    Case(Tensor.half, "key_cache", "dtype equals that of key"),
    Case(Tensor.long, "slot_indices", "dtype is one of int32"),
    Case(lambda t: t.flatten(1), "key", "has 3 dimensions"),
    Case(lambda t: t.flatten(1), "value", "has 3 dimensions"),
    Case(lambda t: t.flatten(2), "key_cache", "has 4 dimensions"),
    Case(lambda t: t[None], "slot_indices", "has 1 dimensions"),
    Case(lambda t: t[:2], "value", "shape is (3, 2, 16)"),
    Case(torch.zeros(4, 16, 4, 16, dtype=BF16), "key_cache", "shape is (4, 16, 2, 16)"),
    Case(torch.zeros(4, 8, 2, 16, dtype=BF16), "value_cache", "shape is (4, 16, 2, 16)"),
    Case(lambda t: t[:2], "slot_indices", "shape is (3,)"),
    Case(torch.zeros(4, 2, 16, 16, dtype=BF16).transpose(1, 2), "key_cache", "must be contiguous"),
    Case(torch.tensor([0, 1, 64], dtype=I32), "slot_indices", "values lie in [0, 63]"),
)


def test_reshape_and_cache_values():
    c = store_call()
    atb.reshape_and_cache(**c)
    assert torch.equal(c["key_cache"].view(64, 2, 16)[[5, 0, 63]], c["key"]) and torch.equal(
        c["value_cache"].view(64, 2, 16)[[5, 0, 63]], c["value"]
    )
    assert (c["key_cache"].abs().sum((2, 3)) > 0).sum() == 3


def decode_call(dtype=BF16, block=128, **changes):
    c = call(s=1, paged=block, dtype=dtype, lengths=changes.pop("lengths", [20, 33]), **changes)
    pages = [p.unflatten(2, (c["kv_heads"], -1)) for p in (c["keys"][0], c["values"][0])]
    return dict(
        query=c["query"][:, 0].contiguous(),
        key_cache=pages[0],
        value_cache=pages[1],
        num_kv_heads=c["kv_heads"],
        num_heads=c["heads"],
        scale_value=c["scale"],
        block_table=c["block_table"],
        context_lens=torch.tensor(c["kv_lengths"], dtype=I32),
        out=torch.full((2, c["heads"], pages[1].shape[3]), torch.nan).to(dtype),
        sequences=c["sequences"],
    )


def decode(sequences=None, **arguments):
    atb.paged_attention(**arguments)


DECODES = (
    Case({}, "product", "exists on", soc=A5),
    Case(Tensor.float, "query", "dtype is one of"),
    Case(lambda t: t.flatten(1), "query", "has 3 dimensions"),
    Case(lambda t: t.flatten(2), "key_cache", "has 4 dimensions"),
    Case(lambda t: t.flatten(2), "value_cache", "has 4 dimensions"),
    Case({"num_heads": 2}, "query", "number of heads is 2"),
    Case(3, "num_kv_heads", "divides num_heads"),
    Case(Tensor.half, "key_cache", "dtype equals that of query"),
    Case(
        lambda t: t.transpose(1, 2).contiguous().transpose(1, 2), "key_cache", "must be contiguous"
    ),
    Case(lambda t: View(t, 29), "value_cache", "storage format is ND"),
    Case(lambda t: t[:1], "value_cache", "blocks and block size"),
    Case({"num_kv_heads": 4}, "key_cache", "number of heads is 4"),
    Case({"query": torch.zeros(2, 4, 32, dtype=BF16)}, "key_cache", "the head size is 32"),
    Case({}, "key_cache", "at most 576", dict(d=592, block=16)),
    Case({}, "key_cache", "block size is at most 128", dict(d=320, block=256)),
    Case({}, "key_cache", "not multiples of 16: not documented", dict(d=24)),
    Case(Tensor.long, "block_table", "dtype is one of int32"),
    Case(lambda t: t[:1], "block_table", "shape is (2, blocks)"),
    Case(Tensor.long, "context_lens", "dtype is one of int32"),
    Case(lambda t: t[:1], "context_lens", "shape is (2,)"),
    Case(torch.tensor([20, 129], dtype=I32), "context_lens", "values lie in [0, 128]"),
    Case(lambda t: t + 3, "block_table", "values lie in [0, 2]"),
    Case(lambda t: t[:1], "out", "number of elements"),
    Case(Tensor.float, "out", "dtype equals that of query"),
)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("block", [16, 128])
def test_paged_attention_values(dtype, block):
    c = decode_call(dtype, block)
    decode(**c)
    for i, (k, v) in enumerate(c["sequences"]):
        expected, _ = reference(c["query"][i : i + 1], k, v, c["scale_value"], lambda *_: True)
        assert (c["out"][i : i + 1].double() - expected).abs().max() <= 2e-2


MASK128 = torch.ones(128, 128).triu(1)


def prefill_call(dtype=BF16, q_lengths=(5, 3), lengths=(133, 3), padding=0, flat=False, **changes):
    c = call(
        layout="TND",
        paged=128,
        dtype=dtype,
        lengths=list(lengths),
        q_lengths=list(q_lengths),
        **changes,
    )
    pages = [c["keys"][0], c["values"][0]]
    pages = pages if flat else [p.unflatten(2, (c["kv_heads"], -1)) for p in pages]
    query = torch.cat(
        (c["query"], torch.zeros(padding, *c["query"].shape[1:], dtype=dtype))
    ).flatten(1)
    return dict(
        query=query,
        key_cache=pages[0],
        value_cache=pages[1],
        block_table=c["block_table"],
        mask=MASK128.to(dtype),
        seq_len=torch.tensor(q_lengths, dtype=I32),
        context_lens=torch.tensor(lengths, dtype=I32),
        num_kv_heads=c["kv_heads"],
        num_heads=c["heads"],
        scale_value=c["scale"],
        out=torch.full_like(query, torch.nan),
        sequences=c["sequences"],
        queries=c["queries"],
    )


def prefill(sequences=None, queries=None, **arguments):
    atb.flash_attention_qlens(**arguments)


PREFILL = (
    Case({}, "product", "exists on", soc=A5),
    Case(Tensor.float, "query", "dtype is one of"),
    Case(lambda t: t.unflatten(1, (4, 16))[None], "query", "has 2 to 3 dimensions"),
    Case(lambda t: t.flatten(1), "key_cache", "has 3 to 4 dimensions"),
    Case(lambda t: t.flatten(2), "value_cache", "as many dimensions as key_cache"),
    Case(lambda t: t[:, :62].contiguous(), "query", "multiple of 4"),
    Case(
        {
            "key_cache": lambda t: t.flatten(2)[..., :31].contiguous(),
            "value_cache": lambda t: t.flatten(2),
        },
        "key_cache",
        "multiple of 2",
    ),
    Case({"query": lambda t: torch.cat((t,) * 2, 1)}, "key_cache", "the head size is 32"),
    Case({}, "query", "multiple of 16, up to 128", dict(d=144)),
    Case({}, "query", "multiple of 16, up to 128", dict(d=24)),
    Case(
        {
            "key_cache": lambda t: t[:, :64].contiguous(),
            "value_cache": lambda t: t[:, :64].contiguous(),
        },
        "key_cache",
        "the block size is 128",
    ),
    Case(MASK128.bool(), "mask", "dtype is one of"),
    Case(MASK128.half(), "mask", "dtype equals that of query"),
    Case(torch.ones(256, 256).triu(1).to(BF16), "mask", "shape is (128, 128)"),
    Case(torch.zeros(128, 128, dtype=BF16), "mask", "not zero above"),
    Case(Tensor.long, "block_table", "dtype is one of int32"),
    Case(lambda t: t[0], "block_table", "has 2 dimensions"),
    Case(Tensor.long, "seq_len", "dtype is one of int32"),
    Case(lambda t: t[:1], "context_lens", "shape is (2,)"),
    Case({"seq_len": torch.tensor([5, 4], dtype=I32)}, "context_lens", "more queries than rows"),
    Case(torch.tensor([131, 3], dtype=I32), "context_lens", "multiple of 128 rows (found 126)"),
    Case(
        {
            "seq_len": torch.tensor([5, 131], dtype=I32),
            "context_lens": torch.tensor([133, 131], dtype=I32),
        },
        "seq_len",
        "sums to at most the 8 rows",
    ),
    Case(lambda t: t[:1], "out", "number of elements"),
    Case(Tensor.float, "out", "dtype equals that of query"),
    Case(lambda t: t + 5, "block_table", "values lie in"),
)


OPERATORS = (
    Operator("atb::_npu_reshape_and_cache", atb.reshape_and_cache, store_call, STORE),
    Operator("atb::_npu_paged_attention", decode, decode_call, DECODES),
    Operator("atb::_npu_flash_attention_qlens", prefill, prefill_call, PREFILL),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(
    "q_lengths,lengths", [((5, 3), (5, 3)), ((5, 3), (133, 3)), ((130, 0), (258, 128))]
)
@pytest.mark.parametrize("flat", [False, True])
def test_flash_attention_qlens_values(dtype, q_lengths, lengths, flat):
    c = prefill_call(dtype, q_lengths, lengths, padding=2, flat=flat)
    prefill(**c)
    start = 0
    for q, (k, v) in zip(c["queries"], c["sequences"], strict=False):
        s = q.shape[0]
        rows = [0, s - 1] if s > 10 else range(s)  # the written-out reference is slow
        for i in rows:
            seen = i + k.shape[0] - s + 1
            expected, _ = reference(
                q[i : i + 1], k[:seen], v[:seen], c["scale_value"], lambda *_: True
            )
            assert (c["out"][start + i].double() - expected.flatten()).abs().max() <= 2e-2
        start += s
    assert c["out"][start:].isnan().all()  # padding is left alone


def test_chunks_of_a_prompt_equal_the_whole():
    """A prompt in chunks of 128 reads what the chunks before left in the cache, and gives what the
    whole prompt gives.
    """
    whole = prefill_call(F16, (300,), (300,), b=1)
    prefill(**whole)
    for start, end in ((0, 128), (128, 256), (256, 300)):
        part = whole | dict(
            query=whole["query"][start:end].contiguous(),
            out=torch.empty_like(whole["out"][start:end]),
            seq_len=torch.tensor([end - start], dtype=I32),
            context_lens=torch.tensor([end], dtype=I32),
        )
        prefill(**part)
        assert torch.allclose(part["out"].float(), whole["out"][start:end].float(), atol=2e-3)
