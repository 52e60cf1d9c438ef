"""Loops and branches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ascend_gguf.codegen.backend import backend
from ascend_gguf.codegen.kinds import I64
from ascend_gguf.codegen.value import Value, whole


def fold(
    start: Value | int,
    stop: Value | int,
    step: int,
    initial: Sequence[Value],
    body: Callable[[Value, list[Value]], Sequence[Value]],
) -> list[Value]:
    """``for i in range(start, stop, step): values = body(i, values)``: the last values."""
    kinds = [(value.kind, value.count) for value in initial]

    def values(raws: list) -> list[Value]:
        return [Value(raw, *kind) for raw, kind in zip(raws, kinds, strict=True)]

    def once(i: object, raws: list) -> list:
        return [value.raw for value in body(Value(i, I64), values(raws))]

    bounds = whole(start).raw, whole(stop).raw, step
    return values(backend().fold(bounds, [(v.raw, v.kind, v.count) for v in initial], once))


def loop(start: Value | int, stop: Value | int, step: int = 1) -> Iterator[Value]:
    """``for i in loop(start, stop, step)``: the body is traced once: no ``break``."""
    for raw in backend().loop(whole(start).raw, whole(stop).raw, step):
        yield Value(raw, I64)


def tile_loop(tile: Value, size: Value | int, count: Value | int, step: int = 1) -> Iterator[Value]:
    """Of ``range(0, count, step)`` the numbers that are a tile's, of ``size`` each."""
    first = tile * size
    return loop(first, minimum(first + size, count), step)


def when(
    condition: Value, then: Callable[[], None], otherwise: Callable[[], None] | None = None
) -> None:
    """``if condition: then()``, ``else: otherwise()``."""
    backend().branch(condition.raw, then, otherwise)


def switch(value: Value, cases: range, body: Callable[[int], None]) -> None:
    """``body(value)``, specialized for each of the cases; nothing for other values."""
    backend().switch(value.raw, cases, body)


def minimum(a: Value, b: Value | int) -> Value:
    """The lesser of two, lane by lane."""
    b = a.like(b)
    return (a < b).select(a, b)
