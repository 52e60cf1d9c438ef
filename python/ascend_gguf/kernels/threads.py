"""Running a kernel on the threads that torch computes with.

Those are OpenMP's, started and bound to cores as torch (and an engine) was told to.  They wait for
work without sleeping, so a kernel of some microseconds is worth all of them.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from ascend_gguf.decoding import in_parallel


def run(kernel: Callable[[int], None], job: int, most: int) -> None:
    """Run a kernel on a job until all of its tiles are done.

    Args:
        kernel: machine code as :func:`~ascend_gguf.kernels.job.compiled_kernel` makes it; takes
            tiles until there are none left.
        job: its address.
        most: how many threads are of use, as there are no more tiles.
    """
    threads = min(torch.get_num_threads(), most)
    if threads <= 1:
        kernel(job)
    elif parallel := _gomp_parallel():
        parallel(kernel, job, threads, 0)
    else:
        in_parallel([functools.partial(kernel, job)] * threads)


@functools.cache
def _gomp_parallel() -> Callable[..., None] | None:
    """``GOMP_parallel(function, argument, threads, flags)`` of the OpenMP library in use.

    LLVM's and Intel's libraries have it too.
    """
    for name in (None, *_loaded_libraries()):
        function = getattr(ctypes.CDLL(name), "GOMP_parallel", None)
        if function is not None:
            function.argtypes = [
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_uint,
                ctypes.c_uint,
            ]
            function.restype = None
            return function
    return None


def _loaded_libraries() -> list[str]:
    """OpenMP libraries in this process; none where the system does not say."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps.read_text().splitlines()}
    return sorted(path for path in paths if Path(path).name.startswith(("libgomp", "libomp")))
