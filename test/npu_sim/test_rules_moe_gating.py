"""Gating, which chooses a token's experts: each rule broken once, and values."""

import pytest
import torch
from rule_cases import A5, OLD, P310, Case, Operator, every_case, on, refused

from npu_sim.operators import moe_gating as gating
from npu_sim.operators.rules import OperatorMissing
from npu_sim.operators.view import View

BF16, F16, F32, I32 = torch.bfloat16, torch.float16, torch.float32, torch.int32
T, K, E, H = 6, 2, 8, 16


def distinct(tokens=T, experts=E):
    return torch.stack([torch.randperm(experts) for _ in range(tokens)]).float()


def softmax_call(dtype=F32):
    x = distinct().to(dtype)
    return dict(
        x=x,
        finished=None,
        k=K,
        y=torch.empty(T, K, dtype=dtype),
        expert_idx=torch.empty(T, K, dtype=I32),
        row_idx=torch.empty(T, K, dtype=I32),
    )


_SOFTMAX = (
    Case(torch.ones(T, E, dtype=I32), "x", "dtype is one of"),
    Case(torch.ones(E), "x", "has 2 to 3 dimensions"),
    Case(lambda t: View(t, 29), "x", "storage format is ND"),
    Case(0, "k", "is in [1, min(experts, 1024)]"),
    Case(9, "k", "is in [1, min(experts, 1024)]"),
    Case(torch.ones(T), "finished", "dtype is one of bool"),
    Case(torch.ones(T, 1, dtype=torch.bool), "finished", f"shape is ({T},)"),
)
SOFTMAX = (
    *_SOFTMAX,
    Case({}, "product", "exists on", soc=OLD),
    Case({}, "x", "dtype is one of float16 (", soc=P310),
    Case(
        torch.zeros(T, dtype=torch.bool),
        "finished",
        "must not be given on 310P",
        dict(dtype=F16),
        P310,
    ),
    Case({}, "x", "E a multiple of 16", dict(dtype=F16), P310),
    Case(torch.ones(1, 2049), "x", "E on Ascend 950 is in [1, 2048]", soc=A5),
)


@pytest.mark.parametrize("dtype", [BF16, F16, F32])
def test_gating_top_k_softmax_values(dtype):
    c = softmax_call(dtype)
    c["finished"] = torch.arange(T) == 3
    gating.gating_top_k_softmax(**c)
    for t in range(T):
        p = c["x"][t].double().softmax(0)
        order = sorted(range(E), key=lambda e: -p[e].item())[:K]
        assert c["expert_idx"][t].tolist() == ([E] * K if t == 3 else order)
        assert torch.allclose(c["y"][t].double(), p[order], rtol=1e-2 if dtype == BF16 else 1e-3)
        assert c["row_idx"][t].tolist() == [t, t + T]
    c = softmax_call()
    gating.gating_top_k_softmax(**c | {"x": torch.zeros(T, E)})
    assert c["expert_idx"].tolist() == [[0, 1]] * T  # ties by number


def test_gating_top_k_softmax_on_310p():
    """It gives no rows."""
    c = softmax_call(F16) | {"x": distinct(T, 16).half()}
    c["row_idx"].fill_(7)
    with on(P310):
        gating.gating_top_k_softmax(**c)
    assert torch.equal(c["expert_idx"].long(), c["x"].topk(K).indices) and not c["row_idx"].any()


def softmax_v2_call(dtype=F32):
    c = softmax_call(dtype)
    del c["row_idx"]
    return c | {"renorm": 1, "output_softmax": False, "softmax": torch.empty(T, E)}


SOFTMAX_V2 = (
    *_SOFTMAX,
    Case({}, "product", "exists on", soc=P310),
    Case(2, "renorm", "is one of 0, 1"),
)


@pytest.mark.parametrize("renorm", [0, 1])
def test_gating_top_k_softmax_v2_values(renorm):
    c = softmax_v2_call() | {"renorm": renorm, "output_softmax": True}
    gating.gating_top_k_softmax_v2(**c)
    plain = softmax_call() | {"x": c["x"]}
    gating.gating_top_k_softmax(**plain)
    expected = plain["y"] / plain["y"].sum(-1, keepdim=True) if renorm else plain["y"]
    assert torch.allclose(c["y"], expected)
    assert torch.equal(c["expert_idx"], plain["expert_idx"])
    if not renorm:
        assert torch.allclose(c["softmax"], c["x"].softmax(-1))


def gate_call(dtype=F32, **changes):
    return (
        dict(
            x=distinct().to(dtype) / 4,
            bias=None,
            k=K,
            k_group=1,
            group_count=1,
            group_select_mode=0,
            renorm=0,
            norm_type=1,
            out_flag=False,
            factor=1.0,
            eps=1e-20,
            y=torch.empty(T, K, dtype=dtype),
            expert_idx=torch.empty(T, K, dtype=I32),
            norm_out=torch.empty(T, E),
        )
        | changes
    )


GATE = (
    Case({}, "product", "exists on", soc=P310),
    Case(torch.ones(T, E, dtype=I32), "x", "dtype is one of"),
    Case(torch.ones(E), "x", "has 2 dimensions"),
    Case(lambda t: View(t, 29), "x", "storage format is ND"),
    Case(torch.ones(1, 2049), "x", "at most 2048 experts"),
    Case(torch.ones(E, dtype=F16), "bias", "dtype equals that of x"),
    Case(torch.ones(1, E), "bias", f"shape is ({E},)"),
    Case(3, "group_count", "divides the 8 experts"),
    Case(2, "k_group", "it is in [1, 1]"),
    Case({"group_count": 2, "k": 5}, "k", "it is in [1, 4]"),
    Case(2, "group_select_mode", "is one of 0, 1"),
    Case(4, "group_count", "more than 2 experts"),
    Case(
        {"x": torch.ones(1, 300), "group_count": 75, "k_group": 75},
        "group_count",
        "at most 2048 in all",
    ),
    Case(2, "norm_type", "is one of 0, 1"),
    Case(2, "renorm", "is one of 0, 1"),
)


OPERATORS = (
    Operator("npu_moe_gating_top_k_softmax", gating.gating_top_k_softmax, softmax_call, SOFTMAX),
    Operator(
        "npu_moe_gating_top_k_softmax_v2",
        gating.gating_top_k_softmax_v2,
        softmax_v2_call,
        SOFTMAX_V2,
    ),
    Operator("npu_moe_gating_top_k", gating.gating_top_k, gate_call, GATE),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


@pytest.mark.parametrize("norm_type,renorm", [(1, 0), (0, 0), (0, 1)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", [0, 1])
def test_gating_top_k_values(norm_type, renorm, bias, groups, mode):
    b = torch.randn(E) if bias else None
    c = gate_call(
        bias=b,
        group_count=groups,
        norm_type=norm_type,
        renorm=renorm,
        group_select_mode=mode,
        factor=2.5,
        out_flag=True,
    )
    gating.gating_top_k(**c)
    for t in range(T):
        x = c["x"][t].double()
        norm = x.sigmoid() if norm_type else x.softmax(0)
        choice = norm + (b.double() if bias else 0)
        allowed = range(E)
        if groups == 2:
            score = [
                choice[g * 4 : g * 4 + 4]
                .sort(descending=True)
                .values[: 2 if mode else 1]
                .sum()
                .item()
                for g in range(2)
            ]
            best = score.index(max(score))
            allowed = range(best * 4, best * 4 + 4)
        order = sorted(allowed, key=lambda e: -choice[e].item())[:K]
        weights = norm[order]
        if norm_type or renorm:
            weights = weights / weights.sum()
        assert c["expert_idx"][t].tolist() == order
        assert torch.allclose(c["y"][t].double(), weights * 2.5, rtol=1e-5)
        assert torch.allclose(c["norm_out"][t].double(), norm, rtol=1e-5)


def test_gating_entry_points():
    c = gate_call()
    values = list(c.values())
    gating.gating_top_k_v1(*values)
    first = c["expert_idx"].clone()
    gating.gating_top_k_v2(*values[:2], None, None, *values[2:])
    assert torch.equal(first, c["expert_idx"])
    with pytest.raises(OperatorMissing, match="npu_moe_gating_top_k"):
        gating.gating_top_k_v2(*values[:2], torch.zeros(T), None, *values[2:])
