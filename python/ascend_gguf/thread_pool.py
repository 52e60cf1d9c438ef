"""The threads that read, decode and convert: one pool for a process."""

from __future__ import annotations

import functools
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import torch

#: Threads decode pieces of about this many weights, a tenth of a millisecond each: smaller inputs
#: are not worth a second thread.
WEIGHTS_PER_PIECE = 1 << 18

#: The threads of a call that does not say how many; None: see :func:`default_threads`.
thread_limit: ContextVar[int | None] = ContextVar("thread_limit", default=None)


def in_parallel(tasks: Iterable[Callable[[], object]], threads: int | None = None) -> None:
    """Run tasks that are worth a thread each, and release the interpreter's lock.

    Args:
        tasks: in any order; the first error ends it, and is raised.
        threads: the most to use; by default :data:`thread_limit`, or else :func:`default_threads`.
    """
    waiting = deque(tasks)
    if len(waiting) == 1:
        waiting.pop()()
        return
    threads = threads or thread_limit.get() or default_threads()

    def work() -> None:
        while True:
            try:
                task = waiting.popleft()
            except IndexError:
                return
            task()

    helpers = [_pool().submit(work) for _ in range(min(threads, len(waiting)) - 1)]
    try:
        work()
    finally:
        waiting.clear()
        # One that has not begun is not waited for: the pool may be busy with other callers.
        for helper in helpers:
            if not helper.cancel():
                helper.result()


def default_threads() -> int:
    """The cores this process may run on, no more than torch uses (``torch.get_num_threads``)."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(cores, torch.get_num_threads())


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """The threads that help callers; none is started before it has something to do."""
    return ThreadPoolExecutor(max(32, os.cpu_count() or 1), "dequantize")


# Threads do not survive a fork: a child begins with a pool of its own.
os.register_at_fork(after_in_child=_pool.cache_clear)
