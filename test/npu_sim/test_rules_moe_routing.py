"""Routing to experts and back: each rule broken once, and values."""

import pytest
import torch
from rule_cases import A2, A3, A5, P310, Case, Operator, every_case, on, refused
from torch import Tensor

from npu_sim.operators import moe_routing as moe
from npu_sim.operators.rules import OperatorMissing
from npu_sim.operators.view import View

BF16, F16, F32, I32 = torch.bfloat16, torch.float16, torch.float32, torch.int32
T, K, E, H = 6, 2, 8, 16


def experts():
    generator = torch.Generator().manual_seed(4)
    return torch.stack([torch.randperm(E, generator=generator)[:K] for _ in range(T)]).to(I32)


def older_call(dtype=BF16):
    return dict(
        x=torch.randn(T, H).to(dtype),
        row_idx=torch.arange(T * K, dtype=I32).view(K, T).t().contiguous(),
        expert_idx=experts(),
        active_num=T,
        expanded_x=torch.empty(T * K, H, dtype=dtype),
        expanded_row_idx=torch.empty(T * K, dtype=I32),
        expanded_expert_idx=torch.empty(T * K, dtype=I32),
    )


OLDER = (
    Case({}, "product", "exists on", soc=P310),
    Case(torch.ones(T, H, dtype=torch.int8), "x", "dtype is one of"),
    Case(torch.ones(1, T, H, dtype=BF16), "x", "has 2 dimensions"),
    Case(lambda t: View(t, 29), "x", "storage format is ND"),
    Case(torch.zeros(1, 1, dtype=BF16).expand(T, 2**24), "x", "fewer than 2^24"),
    Case(Tensor.long, "expert_idx", "dtype is one of int32"),
    Case(Tensor.long, "row_idx", "dtype is one of int32"),
    Case(lambda t: t[:2], "expert_idx", f"shape is ({T}, K)"),
    Case(Tensor.flatten, "row_idx", f"shape is ({T}, {K})"),
    Case(lambda t: t + 1, "row_idx", f"values lie in [0, {T * K - 1}]"),
    Case(-1, "active_num", "is not negative"),
)
COUNT = (
    Case({}, "product", "exists on", soc=P310),
    Case(
        {"sorted_experts": torch.tensor([0, 1])},
        "sorted_expert_for_source_row",
        "dtype is one of int32",
    ),
    Case(
        {"sorted_experts": torch.zeros(1, 2, dtype=I32)},
        "sorted_expert_for_source_row",
        "has 1 dimensions",
    ),
    Case(
        {"sorted_experts": torch.zeros(1, dtype=I32).expand(2**24)},
        "sorted_expert_for_source_row",
        "fewer than 2^24",
    ),
    Case(2049, "num_expert", "it is in [1, 2048]"),
    Case(
        {"sorted_experts": torch.tensor([0, 8], dtype=I32)},
        "sorted_expert_for_source_row",
        "values lie in [0, 7]",
    ),
    Case(
        {"sorted_experts": torch.tensor([1, 0], dtype=I32)},
        "sorted_expert_for_source_row",
        "does not decrease",
    ),
)


def count_call():
    return dict(
        sorted_experts=torch.tensor([0, 0, 2, 5], dtype=I32),
        num_expert=E,
        out=torch.empty(E, dtype=I32),
    )


def routed(expert_idx, first=0, last=E):
    """(token, slot) in the order of the rows."""
    pairs = [(int(e), t, j) for t, row in enumerate(expert_idx) for j, e in enumerate(row)]
    return [(t, j) for e, t, j in sorted(p for p in pairs if first <= p[0] < last)]


def test_older_interface_values():
    c = older_call()
    moe.init_routing(**c)
    # rows of one expert are in the order of expert_idx, token by token
    order = routed(c["expert_idx"])
    for i, (t, j) in enumerate(order):
        assert torch.equal(c["expanded_x"][i], c["x"][t])
        assert c["expanded_row_idx"][j * T + t] == i
        assert c["expanded_expert_idx"][i] == c["expert_idx"][t, j]
    counts = torch.empty(E, dtype=I32)
    moe.compute_expert_tokens(c["expanded_expert_idx"], E, counts)
    assert counts.tolist() == [
        sum(int(e <= i) for e in c["expert_idx"].flatten()) for i in range(E)
    ]


def init_call(dtype=BF16, **changes):
    first, last = changes.get("active_range") or (0, E)
    return (
        dict(
            x=torch.randn(T, H).to(dtype),
            expert_idx=experts(),
            scale=None,
            offset=None,
            active_num=T * K,
            expert_capacity=-1,
            expert_num=E,
            drop_pad_mode=0,
            count_type=1,
            count_flag=True,
            quant_mode=-1,
            active_range=[0, E],
            row_idx_type=0,
            expanded_x=torch.empty(T * K, H, dtype=dtype),
            expanded_row_idx=torch.empty(T * K, dtype=I32),
            counts=torch.empty(last - first, dtype=torch.int64),
            expanded_scale=torch.empty(T * K),
        )
        | changes
    )


INIT = (
    Case({}, "product", "exists on", soc=P310),
    Case(torch.ones(T, H, dtype=I32), "x", "dtype is one of"),
    Case(torch.ones(1, T, H, dtype=BF16), "x", "has 2 dimensions"),
    Case(lambda t: View(t, 29), "x", "storage format is ND"),
    Case(Tensor.long, "expert_idx", "dtype is one of int32"),
    Case(lambda t: t[:2], "expert_idx", f"shape is ({T}, K)"),
    Case(1, "drop_pad_mode", "it is 0"),
    Case({"count_type": 0}, "expert_tokens_num_type", "is one of 1, 2"),
    Case({"count_flag": False}, "expert_tokens_num_flag", "is True"),
    Case(0, "quant_mode", "is one of -1, 1"),
    Case(2, "row_idx_type", "is one of 0, 1"),
    Case(-2, "active_num", "is -1 or more"),
    Case(0, "expert_num", "it is in [1, 10240]"),
    Case({"expert_num": 5121, "count_type": 2}, "expert_num", "it is in [1, 5120]"),
    Case({"active_range": [0, 9]}, "active_expert_range", "lies in [0, expert_num = 8]"),
    Case(lambda t: t - 1, "expert_idx", "values lie in [0, 7]"),
    Case(lambda t: t + 1, "expert_idx", "values lie in [0, 7]"),
    Case(torch.ones(T), "offset", "must not be given"),
    Case(
        {"x": torch.ones(T, H, dtype=torch.int8), "quant_mode": 1},
        "quant_mode",
        "is -1 with int8 x",
    ),
    Case(torch.ones(T, dtype=F16), "scale", "dtype is one of float32"),
    Case(torch.ones(T, 1), "scale", f"shape is ({T},)"),
)


@pytest.mark.parametrize("soc", [A2, A3, A5])
@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("first,last", [(0, E), (2, 6)])
@pytest.mark.parametrize("kind", [0, 1])
def test_init_routing_v2_values(soc, dtype, first, last, kind):
    c = init_call(dtype, active_range=[first, last], row_idx_type=kind, scale=torch.rand(T))
    c["expanded_x"].zero_()
    with on(soc):
        moe.init_routing_v3(**c)
    order = routed(c["expert_idx"], first, last)
    for i, (t, j) in enumerate(order):
        assert (
            torch.equal(c["expanded_x"][i], c["x"][t]) and c["expanded_scale"][i] == c["scale"][t]
        )
        if kind == 0:
            assert c["expanded_row_idx"][t * K + j] == i
        else:
            assert c["expanded_row_idx"][i] == t * K + j
    if kind == 0:
        assert (c["expanded_row_idx"] == -1).sum() == T * K - len(order)
    assert c["expanded_x"][len(order) :].isnan().all()  # undefined
    assert c["counts"].tolist() == [
        sum(int(e == i) for e in c["expert_idx"].flatten()) for i in range(first, last)
    ]


def test_init_routing_v2_missing_is_named():
    for change in ({"quant_mode": 1}, {"count_type": 2}):
        with pytest.raises(OperatorMissing, match="npu_moe_init_routing_v2"):
            moe.init_routing_v3(**init_call(**change))


# ---------------------------------------------------------------- and back
def final_call(dtype=BF16, mode=2, **changes):
    generator = torch.Generator().manual_seed(5)
    order = torch.randperm(T * K, generator=generator).to(I32)
    return (
        dict(
            rows=torch.randn(T * K, H, generator=generator).to(dtype),
            row_idx=order,
            skip1=None,
            skip2=None,
            bias=None,
            scales=torch.rand(T, K, generator=generator).to(dtype),
            experts=experts(),
            drop_pad_mode=mode,
            k=1,
            y=torch.empty(T, H, dtype=dtype),
        )
        | changes
    )


FINAL = (
    Case(4, "drop_pad_mode", "it is in [0, 3]"),
    Case({}, "drop_pad_mode", "it, on 310P, is 2", dict(dtype=F16, mode=0), P310),
    Case({}, "expanded_permuted_rows", "a multiple of 32", dict(dtype=F16), P310),
    Case(
        {"rows": torch.ones(T * K, 32, dtype=F16)},
        "export_for_source_row",
        "must not be given on 310P",
        dict(dtype=F16),
        P310,
    ),
    Case(torch.ones(T, K, dtype=I32), "scales", "dtype is one of", soc=A5),
    Case({"rows": torch.ones(T * K, H, dtype=I32)}, "expanded_permuted_rows", "dtype is one of"),
    Case(
        {"rows": torch.ones(1, T * K, H, dtype=BF16)}, "expanded_permuted_rows", "has 2 dimensions"
    ),
    Case({"rows": lambda t: View(t, 29)}, "expanded_permuted_rows", "storage format is ND"),
    Case({"row_idx": Tensor.long}, "expanded_src_to_dst_row", "dtype is one of int32"),
    Case({"row_idx": lambda t: t.view(T, K)}, "expanded_src_to_dst_row", "has 1 dimensions"),
    Case(torch.ones(T, K), "scales", "float32 beside bfloat16", dict(dtype=F16)),
    Case(torch.ones(T * K, dtype=BF16), "scales", "has 2 dimensions"),
    Case({"row_idx": lambda t: t[:3]}, "expanded_src_to_dst_row", f"shape is ({T * K},)"),
    Case({"y": torch.empty(T, 4, dtype=BF16)}, "out", f"shape is ({T}, {H})"),
    Case(
        {"row_idx": lambda t: t - 1}, "expanded_src_to_dst_row", f"values lie in [0, {T * K - 1}]"
    ),
    Case({"rows": lambda t: t[:4]}, "expanded_src_to_dst_row", "values lie in [0, 3]"),
    Case(torch.ones(T, H, dtype=BF16), "skip2", "together with skip1"),
    Case(torch.ones(T, H), "skip1", "dtype equals"),
    Case(torch.ones(1, H, dtype=BF16), "skip1", f"shape is ({T}, {H})"),
    Case({"experts": Tensor.long}, "export_for_source_row", "dtype is one of int32"),
    Case({"experts": lambda t: t[:1]}, "export_for_source_row", f"shape is ({T}, {K})"),
    Case(torch.ones(E, H), "bias", "dtype equals"),
    Case(
        {"bias": torch.ones(E, H, dtype=BF16), "experts": None},
        "bias",
        "together with export_for_source_row",
    ),
    Case(torch.ones(E, 3, dtype=BF16), "bias", f"shape is (E, {H})"),
    Case({"bias": torch.ones(3, H, dtype=BF16)}, "export_for_source_row", "values lie in [0, 2]"),
)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
@pytest.mark.parametrize("mode", [0, 2])
@pytest.mark.parametrize("full", [False, True])
def test_finalize_routing_values(dtype, mode, full):
    extra = (
        dict(
            bias=torch.randn(E, H).to(dtype),
            skip1=torch.randn(T, H).to(dtype),
            skip2=torch.randn(T, H).to(dtype),
        )
        if full
        else {}
    )
    c = final_call(dtype, mode, **extra)
    moe.finalize_routing(**c)
    for t in range(T):
        expected = torch.zeros(H, dtype=torch.float64)
        for j in range(K):
            row = c["rows"][int(c["row_idx"][j * T + t if mode == 0 else t * K + j])].double()
            if full:
                row = row + c["bias"][int(c["experts"][t, j])].double()
            expected += row * c["scales"][t, j].double()
        if full:
            expected += c["skip1"][t].double() + c["skip2"][t].double()
        assert (c["y"][t].double() - expected).abs().max() <= {BF16: 2e-2, F16: 3e-3, F32: 1e-5}[
            dtype
        ] * 4


def test_finalize_on_other_products():
    """310P: of 32 and no experts; Ascend 950: with scales of another dtype."""
    plain = dict(rows=torch.randn(T * K, 32).half(), experts=None, y=torch.empty(T, 32).half())
    c = final_call(F16, **plain)
    mixed = final_call(F16, scales=torch.rand(T, K))
    for soc, call in ((P310, c), (A5, mixed)):
        with on(soc):
            moe.finalize_routing(**call)
        rows = call["rows"][call["row_idx"].long()].double().view(T, K, -1)
        expected = (rows * call["scales"].double().unsqueeze(-1)).sum(1)
        assert (call["y"].double() - expected).abs().max() <= 1e-2


def test_finalize_entry_points():
    c = final_call(scales=torch.rand(T, K))  # float32 beside bfloat16
    head = [c[n] for n in ("rows", "row_idx", "skip1", "skip2", "bias", "scales", "experts")]
    moe.finalize_v2(*head, 2, c["y"])
    first = c["y"].clone()
    moe.finalize_v4(*head, *[None] * 4, 2, None, None, None, 1, c["y"])
    assert torch.equal(first, c["y"])
    head[5] = None  # without scales k says how many experts a token has
    moe.finalize_v4(*head, *[None] * 4, 2, None, None, None, K, c["y"])
    assert torch.allclose(
        c["y"][0].float(), c["rows"][c["row_idx"][:K].long()].float().sum(0), atol=0.05
    )
    with pytest.raises(OperatorMissing, match="npu_moe_finalize_routing"):
        moe.finalize_routing(**final_call(mode=3))


OPERATORS = (
    Operator("npu_moe_init_routing", moe.init_routing, older_call, OLDER),
    Operator("npu_moe_compute_expert_tokens", moe.compute_expert_tokens, count_call, COUNT),
    Operator("npu_moe_init_routing_v2", moe.init_routing_v3, init_call, INIT),
    Operator("npu_moe_finalize_routing", moe.finalize_routing, final_call, FINAL),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)
