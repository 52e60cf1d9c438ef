"""ATB's attention and cache writes: each rule broken once, and values."""

import pytest
import torch
from rule_cases import A2, A5, P310, Case, case_list, refused
from test_rules_attention import BF16, F16, I32, call, reference

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
    Case("on 310P", {}, "product", "exists on", P310),
    Case("on 950", {}, "product", "exists on", A5),
    Case("float32", {"key": torch.randn(3, 2, 16)}, "key", "dtype is one of"),
    Case(
        "cache dtype",
        {"key_cache": lambda c: c["key_cache"].half()},
        "key_cache",
        "dtype equals that of key",
    ),
    Case(
        "slots int64",
        {"slot_indices": lambda c: c["slot_indices"].long()},
        "slot_indices",
        "dtype is one of int32",
    ),
    Case("key 2-D", {"key": lambda c: c["key"].flatten(1)}, "key", "has 3 dimensions"),
    Case("value 2-D", {"value": lambda c: c["value"].flatten(1)}, "value", "has 3 dimensions"),
    Case(
        "cache 3-D",
        {"key_cache": lambda c: c["key_cache"].flatten(2)},
        "key_cache",
        "has 4 dimensions",
    ),
    Case(
        "slots 2-D",
        {"slot_indices": lambda c: c["slot_indices"][None]},
        "slot_indices",
        "has 1 dimensions",
    ),
    Case("value tokens", {"value": lambda c: c["value"][:2]}, "value", "shape is (3, 2, 16)"),
    Case(
        "cache heads",
        {"key_cache": torch.zeros(4, 16, 4, 16, dtype=BF16)},
        "key_cache",
        "shape is (4, 16, 2, 16)",
    ),
    Case(
        "value cache",
        {"value_cache": torch.zeros(4, 8, 2, 16, dtype=BF16)},
        "value_cache",
        "shape is (4, 16, 2, 16)",
    ),
    Case(
        "slots shape",
        {"slot_indices": lambda c: c["slot_indices"][:2]},
        "slot_indices",
        "shape is (3,)",
    ),
    Case(
        "cache strided",
        {"key_cache": torch.zeros(4, 2, 16, 16, dtype=BF16).transpose(1, 2)},
        "key_cache",
        "must be contiguous",
    ),
    Case(
        "slot out of the cache",
        {"slot_indices": torch.tensor([0, 1, 64], dtype=I32)},
        "slot_indices",
        "values lie in [0, 63]",
    ),
)


@case_list(*STORE)
def test_reshape_and_cache_refuses(case):
    refused(atb.reshape_and_cache, store_call, case, "atb::_npu_reshape_and_cache")


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
    Case("on 950", {}, "product", "exists on", A5),
    Case("float32", {"query": lambda c: c["query"].float()}, "query", "dtype is one of"),
    Case("query 2-D", {"query": lambda c: c["query"].flatten(1)}, "query", "has 3 dimensions"),
    Case(
        "key cache 3-D",
        {"key_cache": lambda c: c["key_cache"].flatten(2)},
        "key_cache",
        "has 4 dimensions",
    ),
    Case(
        "value cache 3-D",
        {"value_cache": lambda c: c["value_cache"].flatten(2)},
        "value_cache",
        "has 4 dimensions",
    ),
    Case("query heads", {"num_heads": 2}, "query", "number of heads is 2"),
    Case("heads not divided", {"num_kv_heads": 3}, "num_kv_heads", "divides num_heads"),
    Case(
        "cache dtype",
        {"key_cache": lambda c: c["key_cache"].half()},
        "key_cache",
        "dtype equals that of query",
    ),
    Case(
        "cache strided",
        {"key_cache": lambda c: c["key_cache"].transpose(1, 2).contiguous().transpose(1, 2)},
        "key_cache",
        "must be contiguous",
    ),
    Case(
        "cache in NZ",
        {"value_cache": lambda c: View(c["value_cache"], 29)},
        "value_cache",
        "storage format is ND",
    ),
    Case(
        "cache blocks",
        {"value_cache": lambda c: c["value_cache"][:1]},
        "value_cache",
        "blocks and block size",
    ),
    Case("cache heads", {"num_kv_heads": 4}, "key_cache", "number of heads is 4"),
    Case(
        "head size",
        {"query": torch.zeros(2, 4, 32, dtype=BF16)},
        "key_cache",
        "the head size is 32",
    ),
    Case("head of 592", {}, "key_cache", "at most 576", A2, dict(d=592, block=16)),
    Case(
        "head of 320 with pages of 256",
        {},
        "key_cache",
        "block size is at most 128",
        A2,
        dict(d=320, block=256),
    ),
    Case("head of 24", {}, "key_cache", "not multiples of 16: not documented", A2, dict(d=24)),
    Case(
        "table int64",
        {"block_table": lambda c: c["block_table"].long()},
        "block_table",
        "dtype is one of int32",
    ),
    Case(
        "table batch",
        {"block_table": lambda c: c["block_table"][:1]},
        "block_table",
        "shape is (2, blocks)",
    ),
    Case(
        "lengths int64",
        {"context_lens": lambda c: c["context_lens"].long()},
        "context_lens",
        "dtype is one of int32",
    ),
    Case(
        "lengths shape",
        {"context_lens": lambda c: c["context_lens"][:1]},
        "context_lens",
        "shape is (2,)",
    ),
    Case(
        "length beyond the table",
        {"context_lens": torch.tensor([20, 129], dtype=I32)},
        "context_lens",
        "values lie in [0, 128]",
    ),
    Case(
        "block out of range",
        {"block_table": lambda c: c["block_table"] + 3},
        "block_table",
        "values lie in [0, 2]",
    ),
    Case("out size", {"out": lambda c: c["out"][:1]}, "out", "number of elements"),
    Case("out dtype", {"out": lambda c: c["out"].float()}, "out", "dtype equals that of query"),
)


@case_list(*DECODES)
def test_paged_attention_refuses(case):
    refused(decode, decode_call, case, "atb::_npu_paged_attention")


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
    Case("on 950", {}, "product", "exists on", A5),
    Case("float32", {"query": lambda c: c["query"].float()}, "query", "dtype is one of"),
    Case(
        "query 4-D",
        {"query": lambda c: c["query"].unflatten(1, (4, 16))[None]},
        "query",
        "has 2 to 3 dimensions",
    ),
    Case(
        "cache 2-D",
        {"key_cache": lambda c: c["key_cache"].flatten(1)},
        "key_cache",
        "has 3 to 4 dimensions",
    ),
    Case(
        "value cache dims",
        {"value_cache": lambda c: c["value_cache"].flatten(2)},
        "value_cache",
        "as many dimensions as key_cache",
    ),
    Case(
        "query width",
        {"query": lambda c: c["query"][:, :62].contiguous()},
        "query",
        "multiple of 4",
    ),
    Case(
        "flat cache width",
        {
            "key_cache": lambda c: c["key_cache"].flatten(2)[..., :31].contiguous(),
            "value_cache": lambda c: c["value_cache"].flatten(2),
        },
        "key_cache",
        "multiple of 2",
    ),
    Case(
        "head size",
        {"query": lambda c: torch.cat((c["query"],) * 2, 1)},
        "key_cache",
        "the head size is 32",
    ),
    Case("head of 144", {}, "query", "multiple of 16, up to 128", A2, dict(d=144)),
    Case("head of 24", {}, "query", "multiple of 16, up to 128", A2, dict(d=24)),
    Case(
        "pages of 64",
        {
            "key_cache": lambda c: c["key_cache"][:, :64].contiguous(),
            "value_cache": lambda c: c["value_cache"][:, :64].contiguous(),
        },
        "key_cache",
        "the block size is 128",
    ),
    Case("mask bool", {"mask": MASK128.bool()}, "mask", "dtype is one of"),
    Case("mask dtype", {"mask": MASK128.half()}, "mask", "dtype equals that of query"),
    Case(
        "mask shape", {"mask": torch.ones(256, 256).triu(1).to(BF16)}, "mask", "shape is (128, 128)"
    ),
    Case("mask of zeros", {"mask": torch.zeros(128, 128, dtype=BF16)}, "mask", "not zero above"),
    Case(
        "table int64",
        {"block_table": lambda c: c["block_table"].long()},
        "block_table",
        "dtype is one of int32",
    ),
    Case(
        "table 1-D",
        {"block_table": lambda c: c["block_table"][0]},
        "block_table",
        "has 2 dimensions",
    ),
    Case(
        "lengths int64",
        {"seq_len": lambda c: c["seq_len"].long()},
        "seq_len",
        "dtype is one of int32",
    ),
    Case(
        "lengths shape",
        {"context_lens": lambda c: c["context_lens"][:1]},
        "context_lens",
        "shape is (2,)",
    ),
    Case(
        "more queries than rows",
        {"seq_len": torch.tensor([5, 4], dtype=I32)},
        "context_lens",
        "more queries than rows",
    ),
    Case(
        "prefix of 126 rows",
        {"context_lens": torch.tensor([131, 3], dtype=I32)},
        "context_lens",
        "multiple of 128 rows (found 126)",
    ),
    Case(
        "more queries than given",
        {
            "seq_len": torch.tensor([5, 131], dtype=I32),
            "context_lens": torch.tensor([133, 131], dtype=I32),
        },
        "seq_len",
        "sums to at most the 8 rows",
    ),
    Case("out size", {"out": lambda c: c["out"][:1]}, "out", "number of elements"),
    Case("out dtype", {"out": lambda c: c["out"].float()}, "out", "dtype equals that of query"),
    Case(
        "block out of range",
        {"block_table": lambda c: c["block_table"] + 5},
        "block_table",
        "values lie in",
    ),
)


@case_list(*PREFILL)
def test_flash_attention_qlens_refuses(case):
    refused(prefill, prefill_call, case, "atb::_npu_flash_attention_qlens")


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
