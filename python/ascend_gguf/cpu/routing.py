"""From a router's logits to experts and their weights, on the CPU."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from ascend_gguf.codegen import (
    F32,
    I32,
    I64,
    Kernel,
    Rows,
    Value,
    exp,
    fold,
    halved,
    load,
    local,
    loop,
    max_of,
    maximum,
    minimum,
    rows,
    splat,
    store,
    sum_of,
)
from ascend_gguf.cpu.row_ops import as_rows, lanes_of

# What stands for minus infinity, and for an expert that is chosen already.
_NOTHING, _CHOSEN = -1e30, -2e30


def softmax_of_best(
    logits: torch.Tensor, k: int, *, renormalize: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts with the greatest logits, greatest first, and their softmax.

    Args:
        logits: ``[tokens, experts]``: float32, bfloat16 or float16, tokens evenly spaced.
        renormalize: weights are divided by their sum; else the softmax is that of all experts.

    Returns:
        Weights ``[tokens, k]`` float32, and ids ``[tokens, k]`` int32.  Where a logit is NaN
        or infinite, weights are NaN; one of minus infinity has none.
    """
    logits = as_rows(logits)
    tokens, experts = logits.shape
    weights = torch.empty(tokens, k, dtype=torch.float32)
    ids = torch.empty(tokens, k, dtype=torch.int32)
    kernel = _softmax_of_best(experts, k, logits.dtype, renormalize)
    kernel.run(tokens, logits, weights, ids)
    return weights, ids


@functools.cache
def _softmax_of_best(experts: int, k: int, dtype: torch.dtype, renormalize: bool) -> Kernel:
    width = lanes_of(experts)

    def logit(row: Value, j: Value) -> Value:
        return maximum(load(row + j, width), _NOTHING)  # or NaN

    def summed_up(value: Callable[[Value], Value]) -> Value:
        zeros = [splat(0.0, width)]
        (total,) = fold(0, experts, width, zeros, lambda j, sums: [sums[0] + value(j)])
        return sum_of(total)

    def route(tile: Value, logits: Rows, weights: Rows, ids: Rows) -> None:
        scores, row = local(F32, experts), logits[tile]
        summed = summed_up(lambda j: logit(row, j))
        for j in loop(0, experts, width):
            store(scores + j, logit(row, j))
        found = []
        for i in range(k):
            greatest, place = _best(scores, experts, width)
            found.append(greatest)
            store(ids[tile] + i, place)
            store(scores + place.zext(I64), splat(_CHOSEN))
        shares = [exp(one - found[0]) for one in found]
        whole = functools.reduce(lambda a, b: a + b, shares)
        if not renormalize:
            highest = found[0].splat(width)
            whole = summed_up(lambda j: exp(logit(row, j) - highest))
        whole = whole + (summed - summed)  # NaN where a logit is NaN or infinite
        for i, share in enumerate(shares):
            store(weights[tile] + i, share / whole)

    name = f"route_{experts}_{k}_{dtype}"
    return Kernel(name, route, logits=rows(dtype), weights=rows(F32), ids=rows(I32))


def _best(scores: Value, experts: int, width: int) -> tuple[Value, Value]:
    """The greatest score, and the first place that has it."""
    lanes = list(range(width)) if width > 1 else 0

    def higher(j: Value, found: list[Value]) -> list[Value]:
        return [maximum(load(scores + j, width), found[0])]

    (high,) = fold(0, experts, width, [splat(_CHOSEN, width)], higher)
    greatest = max_of(high)

    def place(j: Value, found: list[Value]) -> list[Value]:
        has = load(scores + j, width) >= greatest.splat(width)
        here = j.trunc(I32).splat(width) + lanes
        return [minimum(has.select(here, found[0]), found[0])]

    (places,) = fold(0, experts, width, [splat(experts - 1, width, I32)], place)
    return greatest, halved(places, minimum)
