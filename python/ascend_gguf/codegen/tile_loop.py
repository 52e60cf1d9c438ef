"""Tiles that threads take in turn: how a job begins, and the loop that is in every kernel.

A job is an array of 64-bit whole numbers, the first of them :data:`HEAD`, and a kernel a function
``void work(job)`` that does tiles until there are none left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from llvmlite import ir

from ascend_gguf.codegen.vectors import I64

#: Machine code; takes the address of a job.
Kernel = Callable[[int], None]

#: The tile to be taken next, how many are done, and how many there are.
HEAD = ("next_tile", "done", "tiles")


@contextlib.contextmanager
def each_turn(module: ir.Module) -> Iterator[tuple[ir.IRBuilder, ir.Value, ir.Value]]:
    """Write a kernel; the body of the statement writes what is done with a tile.

    Yields a builder, the job's address and the tile's number.  What is the same for all tiles is
    written with ``builder.goto_entry_block()``.
    """
    signature = ir.FunctionType(ir.VoidType(), [I64.as_pointer()])
    function = ir.Function(module, signature, "work")
    (job,) = function.args
    entry, take, work, done = (function.append_basic_block() for _ in range(4))
    builder = ir.IRBuilder(entry)
    place = {name: builder.gep(job, [I64(i)]) for i, name in enumerate(HEAD)}
    tiles = builder.load(place["tiles"])
    builder.branch(take)
    builder.position_at_end(take)
    count = builder.phi(I64)  # that this thread has done
    count.add_incoming(I64(0), entry)
    tile = builder.atomic_rmw("add", place["next_tile"], I64(1), "monotonic")
    builder.cbranch(builder.icmp_signed("<", tile, tiles), work, done)
    builder.position_at_end(done)
    builder.atomic_rmw("add", place["done"], count, "release")
    builder.ret_void()
    builder.position_at_end(work)
    yield builder, job, tile
    count.add_incoming(builder.add(count, I64(1)), builder.block)
    builder.branch(take)
