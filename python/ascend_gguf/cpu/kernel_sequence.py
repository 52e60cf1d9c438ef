"""Jobs done one after another by all threads, with nothing of Python between them."""

from __future__ import annotations

import ctypes
import functools
import platform
from array import array
from collections.abc import Sequence

import numpy as np
from llvmlite import ir

from ascend_gguf.codegen import threads
from ascend_gguf.codegen.compile import compiled_kernel
from ascend_gguf.codegen.control import repeat
from ascend_gguf.codegen.tile_loop import HEAD, Kernel
from ascend_gguf.codegen.vectors import I32, I64

# 64-bit numbers in a line of the cache, which no two jobs share.
_LINE = 8
# A thread looks so often whether others are done, some 25 microseconds, before it lets whoever has
# to go on have its core, for so many microseconds.
_LOOKS, _NAP = 1000, 50


class Walk:
    """Some jobs, to be done in order, as often as one likes.

    A job begins when all tiles of the one before are done, not when all threads have come: one
    that the system lets wait holds up only what it has taken.

    Args:
        jobs: kernels and what they are run on; copied, and none of it changes but the :data:`HEAD`.
    """

    def __init__(self, jobs: Sequence[tuple[Kernel, array]]) -> None:
        starts = np.cumsum([0] + [-(-len(job) // _LINE) * _LINE for _, job in jobs])
        self._numbers = np.zeros(starts[-1] + _LINE, np.int64)
        first = -(self._numbers.ctypes.data // 8) % _LINE
        self._list = array("q", [len(jobs)])
        for start, (kernel, job) in zip((starts + first).tolist(), jobs, strict=False):
            self._numbers[start : start + len(job)] = job
            code = ctypes.cast(kernel, ctypes.c_void_p)  # type: ignore[arg-type]  # of ctypes
            self._list.extend((code.value or 0, self._numbers.ctypes.data + 8 * start))
        self._kernels = [kernel for kernel, _ in jobs]  # which own their code
        heads = np.array([HEAD.index("next_tile"), HEAD.index("done")])
        self._heads = (starts[:-1, None] + first + heads).reshape(-1)

    def run(self) -> None:
        """Do all jobs."""
        self._numbers[self._heads] = 0
        threads.start(_walk(), self._list.buffer_info()[0], len(self._list))


@functools.cache
def _walk() -> Kernel:
    """Takes the address of a list: how many jobs, and of each the kernel's address and its own."""
    module = ir.Module()
    number = I64.as_pointer()
    job_type = ir.FunctionType(ir.VoidType(), [number])
    walk = ir.Function(module, job_type, "walk")
    sleep = ir.Function(module, ir.FunctionType(I32, [I32]), "usleep")
    (jobs,) = walk.args
    builder = ir.IRBuilder(walk.append_basic_block())

    def one(i: ir.Value) -> None:
        place = builder.add(builder.shl(i, I64(1)), I64(1))
        kernel, job = (
            builder.inttoptr(builder.load(builder.gep(jobs, [builder.add(place, I64(k))])), kind)
            for k, kind in enumerate((job_type.as_pointer(), number))
        )
        done = builder.gep(job, [I64(HEAD.index("done"))])
        tiles = builder.load(builder.gep(job, [I64(HEAD.index("tiles"))]))

        def is_done() -> ir.Value:
            return builder.icmp_signed(">=", builder.load_atomic(done, "acquire", 8), tiles)

        work, look, wait, nap, after = (walk.append_basic_block() for _ in range(5))
        builder.cbranch(is_done(), after, work)
        builder.position_at_end(work)
        builder.call(kernel, [job])
        builder.branch(look)
        builder.position_at_end(look)
        looks = builder.phi(I64)
        looks.add_incoming(I64(0), work)
        builder.cbranch(is_done(), after, wait)
        builder.position_at_end(wait)
        _pause(builder)
        more = builder.add(looks, I64(1))
        looks.add_incoming(more, wait)
        builder.cbranch(builder.icmp_signed("<", more, I64(_LOOKS)), look, nap)
        builder.position_at_end(nap)
        builder.call(sleep, [I32(_NAP)])
        looks.add_incoming(I64(0), nap)
        builder.branch(look)
        builder.position_at_end(after)

    repeat(builder, I64(0), builder.load(jobs), 1, one)
    builder.ret_void()
    return compiled_kernel(module)


def _pause(builder: ir.IRBuilder) -> None:
    """Tell the processor that this is a loop that waits, where it has an instruction for it."""
    if platform.machine() in ("x86_64", "AMD64"):
        nothing = ir.FunctionType(ir.VoidType(), [])
        builder.call(ir.Function(builder.module, nothing, "llvm.x86.sse2.pause"), [])
