"""Running kernels on the threads that torch computes with.

Those are OpenMP's, started and bound to cores as torch (and an engine) was told to.  They wait for
work a while without sleeping, so a kernel of some microseconds is worth all of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ascend_gguf.thread_pool import in_parallel

#: Machine code; takes the address of launch arguments.
Code = Callable[[int], None]

#: How launch arguments begin: the tile to be taken next, how many are done, how many there are.
HEAD = ("next_tile", "done", "tiles")

# Told of what is run, while someone listens.
_listener: Callable[[Code, array], None] | None = None


def run(code: Code, launch: array, most: int | None = None) -> None:
    """Run a kernel until all tiles are done.

    Args:
        launch: its arguments, 64-bit whole numbers that begin with :data:`HEAD`, no tile taken.
        most: threads to use; by default as many as there are tiles, or as torch computes with.
    """
    if _listener is not None:
        _listener(code, launch)
    start(code, launch.buffer_info()[0], most or launch[HEAD.index("tiles")])


def start(code: Code, address: int, most: int) -> None:
    """Call code with an address in each of up to ``most`` threads, and wait for them."""
    threads = min(torch.get_num_threads(), most)
    if threads <= 1:
        code(address)
    elif parallel := _gomp_parallel():
        parallel(code, address, threads, 0)
    else:
        in_parallel([functools.partial(code, address)] * threads)


def wait_briefly() -> None:
    """Threads of processes started from now on wait for some 100 microseconds, then sleep.

    By default they wait for 10 milliseconds, also for a thread that has no core because of them.
    What the environment says already stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "4000")


@contextlib.contextmanager
def listening(listener: Callable[[Code, array], None] | None) -> Iterator[None]:
    """Inside, ``listener`` is told of each kernel that is run, and its arguments, to be copied."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@functools.cache
def _gomp_parallel() -> Callable[..., None] | None:
    """``GOMP_parallel(function, argument, threads, flags)`` of the OpenMP library in use.

    LLVM's and Intel's libraries have it too.  Other packages bring libraries of their own: torch's
    is one that was loaded before it, or among those it needs.
    """
    for library in (None, _torch_library()):
        function = getattr(ctypes.CDLL(library), "GOMP_parallel", None)
        if function is not None:
            void, unsigned = ctypes.c_void_p, ctypes.c_uint
            function.argtypes, function.restype = [void, void, unsigned, unsigned], None
            return function
    return None


def _torch_library() -> str | None:
    libraries = Path(torch.__file__).parent.glob("lib/libtorch_cpu.*")
    return next(map(str, libraries), None)
