"""What gives the operations of a kernel a meaning: LLVM, which writes them down, or NumPy.

:class:`~.interpreter.NumPy` is the definition of each operation.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import TypeAlias

from ascend_gguf.codegen.interpreter import NumPy
from ascend_gguf.codegen.llvm import LLVM

Backend: TypeAlias = LLVM | NumPy

_state = threading.local()


def backend() -> Backend:
    """What gives operations a meaning in this thread: see :func:`running`."""
    return _state.backend


@contextlib.contextmanager
def running(new: Backend) -> Iterator[None]:
    """Inside, operations on values are those of a backend."""
    before, _state.backend = getattr(_state, "backend", None), new
    try:
        yield
    finally:
        _state.backend = before
