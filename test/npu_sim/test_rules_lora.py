"""LoRA of sequences: each rule broken once, and values token by token."""

import pytest
import torch
from rule_cases import P310, Case, Operator, every_case, refused
from torch import Tensor

from npu_sim.operators.lora import sgemmv_expand, sgemmv_shrink

BF16, F16, F32, I32 = torch.bfloat16, torch.float16, torch.float32, torch.int32


def _common(dtype):
    return dict(
        indices=torch.tensor([1, 0, 2], dtype=I32),
        seg_lens=torch.tensor([3, 2, 1], dtype=I32),
        ranks=torch.tensor([8, 16, 0], dtype=I32),
    )


def shrink_call(dtype=BF16, slices=2):
    return _common(dtype) | dict(
        x=torch.randn(6, 64).to(dtype),
        weight=torch.randn(3, 16 * slices, 64).to(dtype),
        scales=torch.tensor([0.5, 2.0, 1.0]).half(),
        y=torch.zeros(6, 16 * slices),
        n_slices=slices,
    )


def expand_call(dtype=BF16):
    return _common(dtype) | dict(
        x=torch.randn(6, 32),
        weight=torch.randn(3, 24, 16).to(dtype),
        offsets=torch.tensor([0, 8, 24], dtype=I32),
        y=torch.randn(6, 24).to(dtype),
    )


SEGMENTS = [
    Case({"indices": Tensor.long}, "lora_indices", "dtype is"),
    Case({"ranks": lambda t: t[None]}, "lora_ranks", "has 1 dimension"),
    Case({"indices": lambda t: t + 1}, "lora_indices", "values"),
    Case({"ranks": torch.tensor([8, 12, 0], dtype=I32)}, "lora_ranks", "is one of"),
    Case({}, "product", "exists on", soc=P310),
    Case(Tensor.half, "weight", "dtype equals"),
    Case(lambda t: t[0], "x", "has 2 dimensions"),
    Case(lambda t: t[0], "weight", "has 3 dimensions"),
]
SHRINK = SEGMENTS + [
    Case(Tensor.float, "x", "dtype is one of"),
    Case(lambda t: t.to(BF16), "y", "dtype is one of"),
    Case({"scales": Tensor.float}, "lora_scales", "dtype is"),
    Case(torch.zeros(6, 16), "y", "shape is (6, 32)"),
    Case({"x": torch.zeros(6, 48).to(BF16)}, "weight", "the last dimension"),
    Case(
        {"x": torch.zeros(6, 32).to(BF16), "weight": torch.zeros(3, 32, 32).to(BF16)},
        "x",
        "is wider than y",
    ),
]
EXPAND = SEGMENTS + [
    Case(Tensor.float, "y", "dtype is one of"),
    Case(lambda t: t.to(BF16), "x", "dtype is one of"),
    Case(lambda t: t[0], "y", "has 2 dimensions"),
    Case({"offsets": torch.tensor([0, 8])}, "slice_offsets", "dtype is"),
    Case({"offsets": torch.tensor([0, 25], dtype=I32)}, "slice_offsets", "values"),
]


OPERATORS = (
    Operator("npu::sgemmv_shrink", sgemmv_shrink, shrink_call, SHRINK),
    Operator("npu::sgemmv_expand", sgemmv_expand, expand_call, EXPAND),
)


@every_case(OPERATORS)
def test_refuses(operator, case):
    refused(operator, case)


#: Adapter and rank of each token: the last one has none.
TOKENS = [(1, 16)] * 3 + [(0, 8)] * 2 + [(2, 0)]


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_shrink_values(dtype):
    c = shrink_call(dtype)
    sgemmv_shrink(**c)
    for t, (adapter, rank) in enumerate(TOKENS):
        rows = c["weight"][adapter, : 2 * rank].double()
        expected = torch.zeros(32, dtype=torch.float64)
        expected[: 2 * rank] = rows @ c["x"][t].double() * c["scales"][adapter].double()
        torch.testing.assert_close(c["y"][t].double(), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_expand_values(dtype):
    c = expand_call(dtype)
    expected = c["y"].double()
    for t, (adapter, rank) in enumerate(TOKENS):
        for s, (first, last) in enumerate(((0, 8), (8, 24))):
            b = c["weight"][adapter, first:last, :rank].double()
            expected[t, first:last] += b @ c["x"][t, s * rank : (s + 1) * rank].double()
    sgemmv_expand(**c)
    torch.testing.assert_close(c["y"].double(), expected, atol=0.1, rtol=1e-2)
