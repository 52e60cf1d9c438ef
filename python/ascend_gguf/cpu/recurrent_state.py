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
    Kind,
    Value,
    exp,
    load,
    loop,
    multiply_add,
    pointer,
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
    def launch(self) -> tuple[int, int, int]:
        """Launch arguments."""
        return self.cache.data_ptr(), self.cache.stride(0), self.slots.data_ptr()

    @property
    def parameters(self) -> tuple[tuple[str, Kind], ...]:
        """Of a kernel that takes :attr:`launch`."""
        kinds = pointer(self.cache.dtype), I64, pointer(self.slots.dtype)
        return tuple(zip(("states", "slot_stride", "slots"), kinds, strict=True))


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
    (requests, heads, rows), (key_heads, columns) = v.shape, k.shape[1:]
    out = torch.empty(v.shape, dtype=v.dtype)
    dtypes = v.dtype, a.dtype, A_log.dtype, dt_bias.dtype
    shape = heads, heads // key_heads, rows, columns
    kernel = _delta_rule(*shape, dt_bias.numel() > heads, dtypes, states.parameters)
    spaced = [number for x in (q, k, v) for number in (x.data_ptr(), x.stride(0))]
    others = (a, b, A_log, dt_bias, out)
    kernel.run(requests * heads, *spaced, *(x.data_ptr() for x in others), *states.launch)
    return out


@functools.cache
def _delta_rule(
    heads: int,
    share: int,
    rows: int,
    columns: int,
    by_channel: bool,
    dtypes: tuple[torch.dtype, ...],
    of_states: tuple[tuple[str, Kind], ...],
) -> Kernel:
    channels = columns if by_channel else 1

    def update(
        tile: Value,
        q: Value,
        q_stride: Value,
        k: Value,
        k_stride: Value,
        v: Value,
        v_stride: Value,
        a: Value,
        b: Value,
        A_log: Value,
        dt_bias: Value,
        out: Value,
        **of_states: Value,
    ) -> None:
        request, head = tile // heads, tile % heads
        key_head = head // share * columns
        query = _of_length(q + (request * q_stride + key_head), columns, columns**-0.5)
        key = _of_length(k + (request * k_stride + key_head), columns, 1.0)
        speed = -exp(load(A_log + head))
        decay = _decays(speed, a + tile * channels, dt_bias + head * channels, channels, key)
        rate = sigmoid(load(b + tile))
        values = v + (request * v_stride + head * rows)

        def taken(row: Value, kept: list[Value]) -> Value:
            return rate * (load(values + row) - _dot(kept, key))

        state = _state(request, tile % heads * (rows * columns), **of_states)
        for row, read in _rows(state, rows, decay, taken, key, query):
            store(out + (tile * rows + row), read)

    dtype, gate_dtype, decay_dtype, bias_dtype = dtypes
    return Kernel(
        f"delta_rule_{heads}_{rows}_{columns}_{dtype}",
        update,
        q=pointer(dtype),
        q_stride=I64,
        k=pointer(dtype),
        k_stride=I64,
        v=pointer(dtype),
        v_stride=I64,
        a=pointer(gate_dtype),
        b=pointer(gate_dtype),
        A_log=pointer(decay_dtype),
        dt_bias=pointer(bias_dtype),
        out=pointer(dtype),
        **dict(of_states),
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
    (requests, heads, rows), (groups, columns) = x.shape, B.shape[1:]
    dtypes = x.dtype, dt.dtype, A.dtype, D.dtype, dt_bias.dtype
    kernel = _state_space(heads, heads // groups, rows, columns, dtypes, states.parameters)
    spaced = [number for t in (x, dt, B, C, out) for number in (t.data_ptr(), t.stride(0))]
    vectors = (t.data_ptr() for t in (A, D, dt_bias))
    kernel.run(requests * heads, *spaced, *vectors, *states.launch)


@functools.cache
def _state_space(
    heads: int,
    share: int,
    rows: int,
    columns: int,
    dtypes: tuple[torch.dtype, ...],
    of_states: tuple[tuple[str, Kind], ...],
) -> Kernel:
    width = lanes_of(columns)

    def update(
        tile: Value,
        x: Value,
        x_stride: Value,
        dt: Value,
        dt_stride: Value,
        B: Value,
        B_stride: Value,
        C: Value,
        C_stride: Value,
        out: Value,
        out_stride: Value,
        A: Value,
        D: Value,
        dt_bias: Value,
        **of_states: Value,
    ) -> None:
        request, head = tile // heads, tile % heads
        group = head // share * columns
        key = _vectors(B + (request * B_stride + group), columns, width)
        query = _vectors(C + (request * C_stride + group), columns, width)
        step = softplus(load(dt + (request * dt_stride + head)) + load(dt_bias + head))
        decay, skipped = exp(step * load(A + head)).splat(width), load(D + head)
        inputs = x + (request * x_stride + head * rows)
        target = out + (request * out_stride + head * rows)

        def taken(row: Value, kept: list[Value]) -> Value:
            return step * load(inputs + row)

        state = _state(request, head * (rows * columns), **of_states)
        for row, read in _rows(state, rows, [decay] * len(key), taken, key, query):
            store(target + row, multiply_add(skipped, load(inputs + row), read))

    dtype, step_dtype, decay_dtype, skip_dtype, bias_dtype = dtypes
    spaced = {"x": dtype, "dt": step_dtype, "B": dtype, "C": dtype, "out": dtype}
    parameters: dict[str, Kind] = {}
    for name, kind in spaced.items():
        parameters |= {name: pointer(kind), f"{name}_stride": I64}
    return Kernel(
        f"state_space_{heads}_{rows}_{columns}_{dtype}",
        update,
        **parameters,
        A=pointer(decay_dtype),
        D=pointer(skip_dtype),
        dt_bias=pointer(bias_dtype),
        **dict(of_states),
    )


def _state(request: Value, place: Value, states: Value, slot_stride: Value, slots: Value) -> Value:
    """The address of a head's state."""
    return states + (load(slots + request).zext(I64) * slot_stride + place)


def _rows(
    state: Value,
    rows: int,
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
    for row in loop(0, rows):
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
