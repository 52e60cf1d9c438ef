"""Control flow for those who write machine code with llvmlite."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

from llvmlite import ir

from ascend_gguf.codegen.vectors import I64


def fold(
    builder: ir.IRBuilder,
    start: ir.Value,
    stop: ir.Value,
    step: int,
    initial: Sequence[ir.Value],
    body: Callable[[ir.Value, list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """``for i in range(start, stop, step): values = body(i, values)``: the last values."""
    before = builder.block
    head, inside, after = (builder.append_basic_block() for _ in range(3))
    builder.branch(head)
    builder.position_at_end(head)
    phis = [builder.phi(value.type) for value in (start, *initial)]
    i, *values = phis
    builder.cbranch(builder.icmp_signed("<", i, stop), inside, after)
    builder.position_at_end(inside)
    following = [builder.add(i, I64(step)), *body(i, values)]
    for phi, first, next_ in zip(phis, (start, *initial), following, strict=True):
        phi.add_incoming(first, before)
        phi.add_incoming(next_, builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return values


def repeat(
    builder: ir.IRBuilder,
    start: ir.Value,
    stop: ir.Value,
    step: int,
    body: Callable[[ir.Value], None],
) -> None:
    """``for i in range(start, stop, step): body(i)``."""

    def once(i: ir.Value, _: list[ir.Value]) -> list[ir.Value]:
        body(i)
        return []

    fold(builder, start, stop, step, [], once)


def minimum(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """The lesser of two whole numbers with a sign."""
    return builder.select(builder.icmp_signed("<", a, b), a, b)


@contextlib.contextmanager
def loop(builder: ir.IRBuilder, start: ir.Value, stop: ir.Value, step: int) -> Iterator[ir.Value]:
    """The body of ``for i in range(start, stop, step)``."""
    before, body, after = builder.block, *(builder.append_basic_block() for _ in range(2))
    builder.cbranch(builder.icmp_signed("<", start, stop), body, after)
    builder.position_at_end(body)
    i = builder.phi(I64)
    yield i
    following = builder.add(i, I64(step))
    i.add_incoming(start, before)
    i.add_incoming(following, builder.block)
    builder.cbranch(builder.icmp_signed("<", following, stop), body, after)
    builder.position_at_end(after)
