"""The self-check: does a device multiply with its packed weights as documented?

What a release of CANN does with a shape or a layout is only known once it has run there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch

from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.linear_kernel import LinearKernel

#: The largest error, relative to the norm of the right answer.  Rounding to bfloat16 makes less
#: than 0.01; a wrong order, sign or scale makes something near 1.
_LARGEST = 0.05

#: Rows that are compared at the beginning of the weight and at its end.
_ROWS = 32


def shape_class(kernel: object, weight: Layout) -> Hashable:
    """Weights of the same class are checked once."""
    tensors = tuple(sorted((n, t.dtype, t.shape) for n, t in weight.tensors.items()))
    return type(kernel), weight.name, weight.dtype, weight.shape, str(tensors)


def linear_mismatch(kernel: LinearKernel, weight: Layout, is_embedding: bool) -> str | None:
    """What is wrong with a linear layer on the device, and with embedding rows; None if nothing.

    Multiplies three random vectors once and compares a few outputs with dense weights.
    """
    device = next(iter(weight.tensors.values())).device
    rows, cols = weight.shape
    x = _random(3, cols, weight.dtype)
    y = kernel.linear(x.to(device), weight).cpu()
    for part in _ends(rows):
        problem = _difference(y[:, part], x.float() @ weight.sample(part).t())
        if problem is None and is_embedding:
            ids = torch.arange(part.start, part.stop).to(device)
            problem = _difference(kernel.rows(weight, ids).cpu(), weight.sample(part))
        if problem is not None:
            return f"{weight.name} {rows} x {cols} in {_name(weight)}: {problem}"
    return None


def experts_mismatch(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], weight: Layout
) -> str | None:
    """As :func:`linear_mismatch`; ``product`` takes ``x [n, cols]`` and rows of each expert."""
    device = next(iter(weight.tensors.values())).device
    experts, rows, cols = weight.shape
    counts = torch.zeros(experts, dtype=torch.int64)
    counts[0], counts[-1] = 1, 2
    x = _random(int(counts.sum()), cols, weight.dtype)
    y = product(x.to(device), counts.to(device)).cpu()
    for expert, inputs in ((experts - 1, slice(-2, None)), (0, slice(0, 1))):
        for part in _ends(rows):
            expected = x[inputs].float() @ weight.sample(part, expert).t()
            problem = _difference(y[inputs, part], expected)
            if problem is not None:
                return f"{weight.name} {experts} x {rows} x {cols} in {_name(weight)}: {problem}"
    return None


def _random(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator(device="cpu").manual_seed(rows * cols)
    return torch.randn(rows, cols, generator=generator, device="cpu").to(dtype)


def _ends(rows: int) -> list[slice]:
    return [slice(0, min(rows, _ROWS)), slice(max(0, rows - _ROWS), rows)]


def _name(weight: Layout) -> str:
    return str(weight.dtype).removeprefix("torch.")


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    error = (found.float() - expected).norm() / expected.norm().clamp(min=1e-30)
    if error <= _LARGEST:  # not so for NaN
        return None
    return f"relative error {error:.2g}"
