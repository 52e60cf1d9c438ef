"""A mixture of experts against the same, one token and one expert at a time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ascend_gguf.cpu.experts import ACTIVATIONS, apply_experts, gelu_and_mul, silu_and_mul

TOKENS, HIDDEN, FFN, EXPERTS, K = 9, 32, 48, 6, 3

#: Relative error of the output allowed for a model of this dtype.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
EVERY_DTYPE = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)

_GATES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
}


def mixture(tokens: int = TOKENS, dtype: torch.dtype = torch.float32, bias: bool = False) -> dict:
    """Arguments of apply_experts, drawn at random."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=g)).to(dtype)

    scores = torch.randn(tokens, EXPERTS, generator=g).softmax(-1)
    weights, ids = scores.topk(K)
    arguments = {
        "x": normal(tokens, HIDDEN),
        "w13": normal(EXPERTS, 2 * FFN, HIDDEN, scale=HIDDEN**-0.5),
        "w2": normal(EXPERTS, HIDDEN, FFN, scale=FFN**-0.5),
        "topk_weights": weights,
        "topk_ids": ids.to(torch.int32),
    }
    if bias:
        arguments |= {"w13_bias": normal(EXPERTS, 2 * FFN), "w2_bias": normal(EXPERTS, HIDDEN)}
    return arguments


def one_by_one(
    x: torch.Tensor,
    w13: torch.Tensor,
    w2: torch.Tensor,
    topk_weights: torch.Tensor,
    topk_ids: torch.Tensor,
    activation: str,
    w13_bias: torch.Tensor | None = None,
    w2_bias: torch.Tensor | None = None,
    weight_on_input: bool = False,
) -> torch.Tensor:
    """The definition, in float64."""
    out = torch.zeros(x.shape, dtype=torch.float64)
    for token in range(x.shape[0]):
        for weight, expert in zip(topk_weights[token], topk_ids[token].tolist(), strict=True):
            if not 0 <= expert < w13.shape[0]:
                continue
            row = x[token].double() * (weight.double() if weight_on_input else 1)
            gate_up = w13[expert].double() @ row
            if w13_bias is not None:
                gate_up += w13_bias[expert].double()
            ffn = gate_up.shape[0] // 2
            hidden = _GATES[activation](gate_up[:ffn]) * gate_up[ffn:]
            result = w2[expert].double() @ hidden
            if w2_bias is not None:
                result += w2_bias[expert].double()
            out[token] += result * (1 if weight_on_input else weight.double())
    return out


def check(arguments: dict, activation: str = "silu", **options) -> torch.Tensor:
    out = apply_experts(**arguments, activation=ACTIVATIONS[activation], **options)
    expected = one_by_one(**arguments, activation=activation, **options)
    x = arguments["x"]
    assert out.dtype is x.dtype
    assert out.shape == x.shape
    error = (out.double() - expected).norm()
    assert error <= TOLERANCE[x.dtype] * expected.norm()
    return out


@EVERY_DTYPE
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("weight_on_input", [False, True], ids=["on output", "on input"])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
def test_mixture(dtype, activation, weight_on_input, bias):
    check(mixture(dtype=dtype, bias=bias), activation, weight_on_input=weight_on_input)


@EVERY_DTYPE
def test_experts_of_other_ranks(dtype):
    """The engine writes -1; whatever is no expert of this rank contributes nothing."""
    arguments = mixture(dtype=dtype, bias=True)
    ids = arguments["topk_ids"]
    ids[0] = -1
    ids[1] = torch.tensor([-1, 2, -1])
    ids[2] = torch.tensor([EXPERTS, 0, 2**31 - 1])
    ids[3] = torch.tensor([-(2**31), EXPERTS - 1, EXPERTS + 1])
    out = check(arguments)
    assert out[0].count_nonzero() == 0
    assert out[1].count_nonzero() > 0


def test_no_expert_is_here():
    arguments = mixture()
    arguments["topk_ids"].fill_(-1)
    assert check(arguments).count_nonzero() == 0


def test_ranks_add_up():
    """Expert parallelism: each rank holds some experts, their outputs are summed."""
    arguments = mixture(bias=True)
    whole = check(arguments)
    total = torch.zeros_like(whole)
    for start, stop in [(0, 2), (2, 3), (3, EXPERTS)]:
        ids = arguments["topk_ids"] - start
        ids[(ids < 0) | (ids >= stop - start)] = -1
        names = ("w13", "w2", "w13_bias", "w2_bias")
        part = {name: arguments[name][start:stop] for name in names}
        total += check(arguments | part | {"topk_ids": ids})
    torch.testing.assert_close(total, whole)


@EVERY_DTYPE
def test_no_tokens(dtype):
    assert check(mixture(0, dtype)).shape == (0, HIDDEN)


@EVERY_DTYPE
@pytest.mark.parametrize("weight_on_input", [False, True])
def test_one_token(dtype, weight_on_input):
    check(mixture(1, dtype, bias=True), weight_on_input=weight_on_input)


@EVERY_DTYPE
@pytest.mark.parametrize("expert", [0, 3, EXPERTS - 1])
def test_all_tokens_on_one_expert(dtype, expert):
    arguments = mixture(dtype=dtype)
    arguments["topk_ids"].fill_(expert)
    check(arguments)


def test_one_expert_for_each_token():
    arguments = mixture()
    check(
        arguments
        | {name: arguments[name][:, :1].contiguous() for name in ("topk_ids", "topk_weights")}
    )


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64, torch.int16], ids=str)
@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_of_the_routing(id_dtype, weight_dtype):
    arguments = mixture()
    arguments["topk_ids"] = arguments["topk_ids"].to(id_dtype)
    arguments["topk_weights"] = arguments["topk_weights"].to(weight_dtype)
    check(arguments)


def test_strided_arguments():
    arguments = mixture()
    ids = torch.stack([arguments["topk_ids"]] * 2, dim=2)[..., 0]
    x = torch.cat([arguments["x"]] * 2, dim=1)[:, HIDDEN:]
    w13 = arguments["w13"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not (ids.is_contiguous() or x.is_contiguous() or w13.is_contiguous())
    check(arguments | {"topk_ids": ids, "x": x, "w13": w13})


def test_arguments_are_left_alone():
    arguments = mixture(bias=True)
    before = {name: value.clone() for name, value in arguments.items()}
    for weight_on_input in (False, True):
        check(arguments, weight_on_input=weight_on_input)
    assert all(torch.equal(arguments[name], before[name]) for name in before)


@EVERY_DTYPE
def test_deterministic(dtype):
    arguments = mixture(dtype=dtype)
    first = check(arguments)
    for _ in range(3):
        assert torch.equal(check(arguments), first)


def test_token_does_not_depend_on_its_neighbours():
    arguments = mixture()
    whole = check(arguments)
    for token in range(TOKENS):
        rows = {
            name: arguments[name][token : token + 1] for name in ("x", "topk_weights", "topk_ids")
        }
        torch.testing.assert_close(check(arguments | rows)[0], whole[token])


def test_activations():
    gate_up = torch.tensor([[1.0, -2.0, 3.0, 5.0]])
    silu = [1 / (1 + torch.e**-1) * 3, -2 / (1 + torch.e**2) * 5]
    assert torch.allclose(silu_and_mul(gate_up), torch.tensor([silu]))
    expected = F.gelu(gate_up[:, :2], approximate="tanh") * gate_up[:, 2:]
    assert torch.allclose(gelu_and_mul(gate_up), expected)
    assert ACTIVATIONS == {"silu": silu_and_mul, "gelu": gelu_and_mul}
