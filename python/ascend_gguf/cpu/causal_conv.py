"""Short causal convolutions on the CPU, channel by channel, with the last inputs as a state.

Names and arguments are those of SGLang's CPU kernels, which come with ``sgl_kernel`` for AMX alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ascend_gguf.codegen import (
    I8,
    I64,
    LANES,
    Kernel,
    Rows,
    Value,
    fold,
    load,
    loop,
    minimum,
    multiply_add,
    pointer,
    rows,
    sigmoid,
    splat,
    store,
)
from ascend_gguf.codegen.value import collect
from ascend_gguf.cpu.row_ops import as_rows, lanes_of

# Channels that a thread takes at a time: some cache lines of a token's.
_CHANNELS = 128


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    *,
    activation: str | None,
    conv_states: torch.Tensor,
    has_initial_state: torch.Tensor,
    cache_indices: torch.Tensor,
    query_start_loc: torch.Tensor,
    seq_lens_cpu: Sequence[int] | None = None,
) -> torch.Tensor:
    """The convolution of prompts, channel by channel.

    Args:
        x: ``[channels, tokens]``, the tokens of all requests; a token's channels are neighbours.
        weight: ``[channels, width]``, contiguous.
        activation: ``silu``, ``swish`` or None.
        conv_states: ``[slots, channels, width - 1]``, the inputs before; those of these requests
            are replaced.  Slots are evenly spaced, each contiguous, as it is or transposed.
        has_initial_state: ``[requests]``; without one, nothing came before.
        cache_indices: ``[requests]``, their slots.
        query_start_loc: ``[requests + 1]``, where their tokens begin.

    Returns:
        ``[channels, tokens]`` of the dtype of ``x``; a token's channels are neighbours.
    """
    starts = query_start_loc.to(torch.int64).contiguous()
    has = has_initial_state.contiguous()
    pairs = (conv_states, cache_indices), (starts, has)
    return _convolve(x.T, weight, bias, activation, *pairs).T


def causal_conv1d_update(
    x: torch.Tensor,
    conv_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str | None = None,
    *,
    conv_state_indices: torch.Tensor,
) -> torch.Tensor:
    """As :func:`causal_conv1d_fn`, of one token a request: ``x`` is ``[requests, channels]``."""
    return _convolve(x, weight, bias, activation, (conv_states, conv_state_indices), None)


def _convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    cache: tuple[torch.Tensor, torch.Tensor],
    prompts: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Of ``x [tokens, channels]``.

    Args:
        cache: the states, and the requests' slots.
        prompts: where requests begin, and which have a state; None for a token of each.
    """
    states, slots = cache
    channels, width = weight.shape
    x, weight, slots = as_rows(x), weight.contiguous(), slots.contiguous()
    bias = None if bias is None else bias.to(weight.dtype)  # has to live until the kernel has run
    by_token = states.stride()[1:] == (1, channels)
    assert by_token or states.stride()[1:] == (width - 1, 1)
    out = torch.empty(x.shape, dtype=x.dtype)
    dtypes = x.dtype, weight.dtype, states.dtype, slots.dtype
    kinds = bias is not None, activation in ("silu", "swish"), prompts is not None, by_token
    kernel = _kernel(channels, width, dtypes, *kinds)
    tiles = len(slots) * -(-channels // _CHANNELS)
    kernel.run(tiles, x, out, weight, bias, states, slots, *(prompts or (None, None)))
    return out


@functools.cache
def _kernel(
    channels: int,
    width: int,
    dtypes: tuple[torch.dtype, ...],
    has_bias: bool,
    is_silu: bool,
    is_prompts: bool,
    by_token: bool,
) -> Kernel:
    """A tile is a request, with some of the channels.

    Args:
        by_token: the channels of a state's token are neighbours.
    """
    dtype, weight_dtype, state_dtype, slot_dtype = dtypes
    lanes = lanes_of(channels, 2 * LANES)
    tiles = -(-channels // _CHANNELS)

    def convolve(
        tile: Value,
        x: Rows,
        out: Rows,
        weight: Value,
        bias: Value,
        states: Rows,
        slots: Value,
        starts: Value,
        has: Value,
    ) -> None:
        request, first = tile // tiles, tile % tiles * _CHANNELS
        start, stop = request, request + 1
        if is_prompts:
            start, stop = load(starts + request), load(starts + request + 1)
        state = states[load(slots + request).zext(I64)]
        for channel in loop(first, minimum(first + _CHANNELS, channels), lanes):
            factors = _columns(weight + channel * width, width, lanes)
            place = _places(state, channel, width - 1, channels if by_token else None)
            is_there = load(has + request).differs(0) if is_prompts else None
            kept = _kept(place, width - 1, lanes, is_there)
            least = load(bias + channel, lanes) if has_bias else splat(0.0, lanes)
            token = functools.partial(_token, x, out, channel, is_silu, factors, least)
            _keep(place, fold(start, stop, 1, kept, token), lanes)

    return Kernel(
        f"convolve_{channels}_{width}_{dtype}",
        convolve,
        x=rows(dtype),
        out=rows(dtype),
        weight=pointer(weight_dtype),
        bias=pointer(weight_dtype),
        states=rows(state_dtype),
        slots=pointer(slot_dtype),
        starts=pointer(I64),
        has=pointer(I8),
    )


def _places(state: Value, channel: Value, count: int, spaced: int | None) -> list[Value]:
    """Where some channels of a state of ``count`` tokens are: of each token, or all together.

    Args:
        spaced: from a token to the next one; None where a channel's tokens are neighbours.
    """
    if spaced is None:
        return [state + channel * count]
    return [state + (channel + i * spaced) for i in range(count)]


def _kept(places: list[Value], count: int, lanes: int, is_there: Value | None) -> list[Value]:
    """A column of channels for each token of a state; zeros if it is not there."""
    if len(places) < count:
        columns = _columns(places[0], count, lanes)
    else:
        columns = [load(place, lanes) for place in places]
    if is_there is None:
        return columns
    return [is_there.splat(lanes).select(column, 0.0) for column in columns]


def _keep(places: list[Value], columns: list[Value], lanes: int) -> None:
    if len(places) < len(columns):
        columns = [collect([column[i] for i in range(lanes) for column in columns])]
    for place, column in zip(places, columns, strict=True):
        store(place, column)


def _columns(address: Value, count: int, lanes: int) -> list[Value]:
    """Of ``[channels, count]``, some channels of each column."""
    both = load(address, lanes * count)
    return [both[i::count] for i in range(count)]


def _token(
    x: Rows,
    out: Rows,
    channel: Value,
    is_silu: bool,
    factors: list[Value],
    least: Value,
    i: Value,
    kept: list[Value],
) -> list[Value]:
    """Some channels of a token's result, from those of the tokens before; what the next keeps."""
    kept = [*kept, load(x[i] + channel, len(least))]
    total = least
    for column, factor in zip(kept, factors, strict=True):
        total = multiply_add(column, factor, total)
    total = total * sigmoid(total) if is_silu else total
    store(out[i] + channel, total)
    return kept[1:]
