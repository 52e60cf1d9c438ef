"""One token of each request and its recurrent state, on the CPU: a matrix for each head.

A token makes the state ``S`` of a head ``S decay + taken key^T``, and reads ``S query`` of it.
What is taken is a vector; with the delta rule it depends on what the state has for the key.  The
decay is a number, or one for each column.  Rows of ``S`` are independent.  Arithmetic is float32; a
kernel reads and writes a state once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ascend_gguf.codegen import (
    I64,
    Kernel,
    Rows,
    Value,
    exp,
    load,
    loop,
    multiply_add,
    pointer,
    rows,
    sigmoid,
    softplus,
    sqrt,
    store,
    sum_of,
)
from ascend_gguf.cpu.row_ops import lanes_of
from ascend_gguf.torch_delta_rule import EPS


@dataclass(frozen=True)
class States:
    """A cache of states, and whose they are.

    Attributes:
        cache: ``[slots, heads, rows, columns]``, slots evenly spaced, each contiguous.
        slots: int32 or int64 ``[requests]``.
    """

    cache: torch.Tensor
    slots: torch.Tensor

    def __post_init__(self) -> None:
        _, heads, rows, columns = self.cache.shape
        assert self.cache.stride()[1:] == (rows * columns, columns, 1)
        assert self.slots.is_contiguous() and self.slots.dtype in (torch.int32, torch.int64)

    @property
    def dtypes(self) -> tuple[torch.dtype, torch.dtype]:
        """Of the cache, and of the slots."""
        return self.cache.dtype, self.slots.dtype


def delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    A_log: torch.Tensor,
    dt_bias: torch.Tensor,
    states: States,
) -> torch.Tensor:
    """The gated delta rule; rows of states are of values, columns of keys.

    Args:
        q, k: ``[requests, key_heads, key_size]``; requests are evenly spaced, each contiguous.
        v: ``[requests, heads, value_size]``, the same; heads share key heads in order, evenly.
        a: ``[requests, heads]``, contiguous; or ``[requests, heads * key_size]``, if each channel
            of a key decays by itself.
        b: ``[requests, heads]``, contiguous.
        A_log: ``[heads]``.
        dt_bias: as many as one request has in ``a``.

    Returns:
        ``[requests, heads, value_size]`` of the dtype of ``v``.
    """
    (requests, heads, size), (key_heads, columns) = v.shape, k.shape[1:]
    out = torch.empty(v.shape, dtype=v.dtype)
    dtypes = v.dtype, a.dtype, A_log.dtype, dt_bias.dtype, *states.dtypes
    kernel = _delta_rule(heads, heads // key_heads, size, columns, dt_bias.numel() > heads, dtypes)
    given = q, k, v, a, b, A_log, dt_bias, out
    kernel.run(requests * heads, *given, states.cache, states.slots)
    return out


@functools.cache
def _delta_rule(
    heads: int,
    share: int,
    size: int,
    columns: int,
    by_channel: bool,
    dtypes: tuple[torch.dtype, ...],
) -> Kernel:
    channels = columns if by_channel else 1

    def update(
        tile: Value,
        q: Rows,
        k: Rows,
        v: Rows,
        a: Value,
        b: Value,
        A_log: Value,
        dt_bias: Value,
        out: Value,
        states: Rows,
        slots: Value,
    ) -> None:
        request, head = tile // heads, tile % heads
        key_head = head // share * columns
        query = _of_length(q[request] + key_head, columns, columns**-0.5)
        key = _of_length(k[request] + key_head, columns, 1.0)
        speed = -exp(load(A_log + head))
        decay = _decays(speed, a + tile * channels, dt_bias + head * channels, channels, key)
        rate = sigmoid(load(b + tile))
        values = v[request] + head * size

        def taken(row: Value, kept: list[Value]) -> Value:
            return rate * (load(values + row) - _dot(kept, key))

        state = states[load(slots + request).zext(I64)] + head * (size * columns)
        for row, read in _rows(state, size, decay, taken, key, query):
            store(out + (tile * size + row), read)

    dtype, gate_dtype, decay_dtype, bias_dtype, state_dtype, slot_dtype = dtypes
    return Kernel(
        f"delta_rule_{heads}_{size}_{columns}_{dtype}",
        update,
        q=rows(dtype),
        k=rows(dtype),
        v=rows(dtype),
        a=pointer(gate_dtype),
        b=pointer(gate_dtype),
        A_log=pointer(decay_dtype),
        dt_bias=pointer(bias_dtype),
        out=pointer(dtype),
        states=rows(state_dtype),
        slots=pointer(slot_dtype),
    )


def _decays(
    speed: Value, steps: Value, biases: Value, channels: int, key: list[Value]
) -> list[Value]:
    """Of each channel of a key, as vectors; one channel has that of all."""
    width = lanes_of(channels)
    pairs = zip(*(_vectors(part, channels, width) for part in (steps, biases)), strict=True)
    decays = [exp(speed.splat(width) * softplus(step + bias)) for step, bias in pairs]
    return decays if channels > 1 else [decays[0].splat(len(key[0]))] * len(key)


def state_space(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    D: torch.Tensor,
    dt_bias: torch.Tensor,
    states: States,
    out: torch.Tensor,
) -> None:
    """Mamba-2; rows of states are of inputs.

    Args:
        x: ``[requests, heads, size]``; requests are evenly spaced, each contiguous.
        dt: ``[requests, heads]``, the same.
        A, D, dt_bias: ``[heads]``, contiguous.
        B, C: ``[requests, groups, state]``, as ``x``; heads share groups in order, evenly.
        out: as ``x``, of its dtype; the result.
    """
    (requests, heads, size), (groups, columns) = x.shape, B.shape[1:]
    dtypes = x.dtype, dt.dtype, A.dtype, D.dtype, dt_bias.dtype, *states.dtypes
    kernel = _state_space(heads, heads // groups, size, columns, dtypes)
    given = x, dt, B, C, out, A, D, dt_bias
    kernel.run(requests * heads, *given, states.cache, states.slots)


@functools.cache
def _state_space(
    heads: int, share: int, size: int, columns: int, dtypes: tuple[torch.dtype, ...]
) -> Kernel:
    width = lanes_of(columns)

    def update(
        tile: Value,
        x: Rows,
        dt: Rows,
        B: Rows,
        C: Rows,
        out: Rows,
        A: Value,
        D: Value,
        dt_bias: Value,
        states: Rows,
        slots: Value,
    ) -> None:
        request, head = tile // heads, tile % heads
        group = head // share * columns
        key = _vectors(B[request] + group, columns, width)
        query = _vectors(C[request] + group, columns, width)
        step = softplus(load(dt[request] + head) + load(dt_bias + head))
        decay, skipped = exp(step * load(A + head)).splat(width), load(D + head)
        inputs, target = x[request] + head * size, out[request] + head * size

        def taken(row: Value, kept: list[Value]) -> Value:
            return step * load(inputs + row)

        state = states[load(slots + request).zext(I64)] + head * (size * columns)
        for row, read in _rows(state, size, [decay] * len(key), taken, key, query):
            store(target + row, multiply_add(skipped, load(inputs + row), read))

    dtype, step_dtype, decay_dtype, skip_dtype, bias_dtype, state_dtype, slot_dtype = dtypes
    return Kernel(
        f"state_space_{heads}_{size}_{columns}_{dtype}",
        update,
        x=rows(dtype),
        dt=rows(step_dtype),
        B=rows(dtype),
        C=rows(dtype),
        out=rows(dtype),
        A=pointer(decay_dtype),
        D=pointer(skip_dtype),
        dt_bias=pointer(bias_dtype),
        states=rows(state_dtype),
        slots=pointer(slot_dtype),
    )


def _rows(
    state: Value,
    count: int,
    decay: list[Value],
    taken: Callable[[Value, list[Value]], Value],
    key: list[Value],
    query: list[Value],
) -> Iterator[tuple[Value, Value]]:
    """Write the new state, row by row: each row's number, and what the query reads there.

    Args:
        decay: of each column, as ``key`` is.
        taken: what a row takes of the key, from its number and what is left of the old state.
    """
    width = len(key[0])
    for row in loop(0, count):
        place = state + row * (len(key) * width)
        old = _vectors(place, len(key) * width, width)
        kept = [part * left for part, left in zip(old, decay, strict=True)]
        factor = taken(row, kept).splat(width)
        found = [multiply_add(factor, part, old) for part, old in zip(key, kept, strict=True)]
        for i, part in enumerate(found):
            store(place + i * width, part)
        yield row, _dot(found, query)


def _vectors(address: Value, count: int, width: int) -> list[Value]:
    return [load(address + i, width) for i in range(0, count, width)]


def _dot(a: list[Value], b: list[Value]) -> Value:
    products = [x * y for x, y in zip(a[:2], b[:2], strict=True)]
    for i, pair in enumerate(zip(a[2:], b[2:], strict=True)):
        products[i % 2] = multiply_add(*pair, products[i % 2])
    return sum_of(functools.reduce(lambda x, y: x + y, products))


def _of_length(address: Value, size: int, length: float) -> list[Value]:
    """A vector, scaled to a length."""
    parts = _vectors(address, size, lanes_of(size))
    scale = length / sqrt(_dot(parts, parts) + EPS)
    return [part * scale.splat(len(part)) for part in parts]
