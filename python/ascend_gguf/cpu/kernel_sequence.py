"""Kernels run one after another by all threads, with nothing of Python between them."""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence

import numpy as np

from ascend_gguf.codegen import I64, Value, load, loop, threads, when
from ascend_gguf.codegen.compile import compiled
from ascend_gguf.codegen.kernel import address_of, call, load_acquire, wait_for
from ascend_gguf.codegen.threads import HEAD, Code

# 64-bit numbers in a line of the cache, which no two launches share.
_LINE = 8
# How often a thread looks whether the others are done (some 25 microseconds) before it sleeps, and
# for how many microseconds.
_LOOKS, _NAP = 1000, 50


class KernelSequence:
    """Launches that run in order, any number of times.

    A kernel begins when all tiles of the one before are done, not when all threads have come: one
    that the system lets wait holds up only what it has taken.

    Args:
        launches: kernels and their arguments; copied, and none changes but the :data:`HEAD`.
    """

    def __init__(self, launches: Sequence[tuple[Code, array]]) -> None:
        starts = np.cumsum([0] + [-(-len(launch) // _LINE) * _LINE for _, launch in launches])
        self._numbers = np.zeros(starts[-1] + _LINE, np.int64)
        first = -(self._numbers.ctypes.data // 8) % _LINE
        self._list = array("q", [len(launches)])
        for start, (code, launch) in zip((starts + first).tolist(), launches, strict=False):
            self._numbers[start : start + len(launch)] = launch
            address = ctypes.cast(code, ctypes.c_void_p)  # type: ignore[arg-type]  # of ctypes
            self._list.extend((address.value or 0, self._numbers.ctypes.data + 8 * start))
        self._codes = [code for code, _ in launches]  # kept, as they own their memory
        heads = np.array([HEAD.index("next_tile"), HEAD.index("done")])
        self._heads = (starts[:-1, None] + first + heads).reshape(-1)

    def run(self) -> None:
        """Run all of them."""
        self._numbers[self._heads] = 0
        threads.start(_sequence(), self._list.buffer_info()[0], len(self._list))


@functools.cache
def _sequence() -> Code:
    return compiled("kernel_sequence", run_sequence)


def run_sequence(launches: Value) -> None:
    """What each thread does.

    Args:
        launches: the address of how many, and of each the kernel's address and its arguments'.
    """
    for i in loop(0, load(launches)):
        place = launches + (i * 2 + 1)
        code, arguments = load(place), address_of(load(place + 1), I64)
        done = arguments + HEAD.index("done")
        tiles = load(arguments + HEAD.index("tiles"))

        def work(
            code: Value = code,
            arguments: Value = arguments,
            done: Value = done,
            tiles: Value = tiles,
        ) -> None:
            call(code, arguments)
            wait_for(done, tiles, _LOOKS, _NAP)

        when(load_acquire(done) < tiles, work)
