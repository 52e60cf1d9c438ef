"""Captured computations: a replay must be the computation itself, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from ascend_gguf.codegen import threads
from ascend_gguf.cpu.graph import NotCapturable, capture, host_call
from ascend_gguf.cpu.row_ops import rms_norm, silu_and_mul

#: How an engine may run a model.
MODES = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=str)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def check(function: Callable[[], torch.Tensor], *inputs: torch.Tensor) -> int:
    """Replay with other inputs: how many steps a replay has."""
    graph, out = capture(function)
    for _ in range(3):
        for x in inputs:
            x.copy_(torch.randn(x.shape) if x.is_floating_point() else torch.randperm(len(x)))
        expected = function().clone()
        out.fill_(-1)
        graph.replay()
        assert torch.equal(out, expected)
    return len(graph._steps)


@MODES
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_are_one_step(mode: Callable, dtype: torch.dtype, count: int) -> None:
    """Also with views, copies and writes by index between them."""
    with mode():
        x, weight = torch.randn(count, 256).to(dtype), torch.rand(128).to(dtype)
        cache, slots = torch.zeros(9, 2, 64).to(dtype), torch.arange(count)

        def function() -> torch.Tensor:
            left, right = x.split(128, -1)
            out, sums = rms_norm(left, weight, 1e-6, right)
            for _ in range(20):
                out, sums = rms_norm(out, weight, 1e-6, sums)
            cache[slots] = out.view(count, 2, 64)
            wide = torch.empty(count, 256, dtype=dtype)
            wide.copy_(x)
            wide[:, :128] = sums
            gated = silu_and_mul(wide[:, 64:192]).reshape(-1)
            return torch.cat([gated.float(), cache.flatten().float()])

        # The kernels, and torch.cat.
        assert check(function, x, slots) == 2


@MODES
def test_operators_of_torch(mode: Callable) -> None:
    with mode():
        x, matrix, ids = torch.randn(4, 32), torch.randn(16, 32), torch.arange(4)

        def function() -> torch.Tensor:
            sums = torch.zeros(4, 16)
            sums += F.linear(x, matrix)  # zeros must come anew
            shares, places = sums.softmax(-1).topk(3)
            shares = shares / shares.sum(-1, keepdim=True)
            picked = matrix[places.reshape(-1)].view(4, 3, 32)
            mixed = torch.einsum("nk,nkd->nd", shares, picked)
            mixed = torch.where(mixed > 0, mixed, -mixed)[ids]
            return mixed.t().contiguous().double()

        check(function, x, matrix, ids)


def test_host_call() -> None:
    x = torch.arange(4)

    def on_the_host(ids: torch.Tensor) -> torch.Tensor:
        return torch.tensor([sum(range(i)) for i in ids.tolist()])

    check(lambda: host_call(on_the_host, x * 2) + 1, x)


def test_an_operators_own_kernels_are_its_own() -> None:
    """An operator that runs kernels inside is called again; its memory is gone by then."""
    x, weight = torch.randn(3, 128), torch.rand(128)
    with torch.library._scoped_library("ascend_gguf_test", "DEF") as library:
        library.define("norm(Tensor x) -> Tensor")
        library.impl("norm", lambda x: rms_norm(x + 0, weight, 1e-6), "CPU")
        assert check(lambda: torch.ops.ascend_gguf_test.norm(x), x) == 1


@MODES
@pytest.mark.parametrize(
    ("read", "message"),
    [
        (lambda x: x.tolist(), "tolist"),
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.sum().item(), "values to Python"),
        (lambda x: bool((x > 0).any()), "values to Python"),
        (lambda x: [1, 2, 3][int(x.argmax()) % 3], "values to Python"),
        (lambda x: x[x > 0], "shape"),
        (lambda x: x.nonzero(), "shape"),
        (lambda x: torch.rand(3), "random"),
    ],
)
def test_what_python_would_have_to_look_at(mode: Callable, read: Callable, message: str) -> None:
    with mode(), pytest.raises(NotCapturable, match=message):
        x = torch.randn(6)
        capture(lambda: read(x))
    # All is as before.
    assert read(torch.ones(6)) is not None
    assert threads._listener is None


@pytest.mark.parametrize("count", [1, 2, 4])
def test_threads_change_no_bit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More threads than cores too: one that waits for a core holds up nothing but its tiles."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    x, weight = torch.randn(300, 512), torch.rand(512)

    def function() -> torch.Tensor:
        out, sums = rms_norm(x, weight, 1e-6, x)
        for _ in range(30):
            out, sums = rms_norm(out, weight, 1e-6, sums)
        return out

    assert check(function, x) == 1


def test_memory_of_a_graph_is_its_own() -> None:
    x, weight = torch.randn(4, 256), torch.rand(256)
    graph, _ = capture(lambda: rms_norm(x, weight, 1e-6))
    assert graph.nbytes == x.nbytes
    with contextlib.suppress(NotCapturable):
        capture(lambda: x.tolist())
    assert host_call(lambda: x) is x
