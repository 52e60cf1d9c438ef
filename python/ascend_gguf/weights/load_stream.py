"""Loading without waiting: reading, decoding and copying to the device overlap.

While a :class:`Stream` is current, copying a :class:`~ascend_gguf.BlockTensor` into a parameter
only queues the copy, and asks the system to begin reading.  Threads work through the queue, each a
slice at a time from the disk to its final place, while the caller finds the place of the next one::

    with Stream():
        model.load_weights(weights)  # returns early; leaving the block waits

Operators that the caller applies to tensors meanwhile see them as if each copy had been made at
once.  ``numpy()`` and ``tolist()`` are not operators, and do not.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader.mapping import MappedFile, locate
from ascend_gguf.thread_pool import default_threads, thread_limit

# Memory cannot feed more, and each holds a chunk of a slice.
_MOST_THREADS = 8
# How far the caller, and with it reading, may be ahead of the threads: enough to keep a disk busy,
# little beside what is loaded.
_MOST_BYTES_AHEAD = 64 << 20
_MOST_SLICES_AHEAD = 64
# Handing fewer weights to a thread takes longer than loading them.
_FEW_WEIGHTS = 1 << 18

_current = threading.local()


class Streamed(torch.Tensor):
    """Base of tensors that are read when they are copied: ``copy_`` from one calls :func:`run`.

    Attributes:
        blocks: the bytes that are read.
    """

    blocks: torch.Tensor


def run(source: Streamed, work: Callable[[], None], out: torch.Tensor | None = None) -> None:
    """Do ``work``, which materialises ``source``: at once, or by the current :class:`Stream`.

    Args:
        source: what is read.
        work: may run later, in another thread, beside other works.
        out: what ``work`` writes, if another work may write the same: they then keep their order.

    Raises:
        GGUFError: ``work`` failed, or an earlier one of the stream did.
    """
    stream = getattr(_current, "stream", None)
    if stream is None:
        work()
    else:
        stream._add(source, work, out)


def mark_used(source: Streamed) -> None:
    """Let the current :class:`Stream` know of a use that is no operator."""
    stream = getattr(_current, "stream", None)
    if stream is not None:
        stream.used.add(place_of(source))


def place_of(source: Streamed) -> tuple[int, int]:
    """Which storage the blocks are in, as ``StorageWeakRef.cdata`` has it, and their address."""
    return source.blocks.untyped_storage()._cdata, source.blocks.data_ptr()


@dataclass(eq=False, slots=True)
class _Slice:
    work: Callable[[], None]
    place: tuple[MappedFile, int] | None
    nbytes: int  # to be read
    target: tuple[int, int]  # addresses that are written


class Stream(TorchDispatchMode):
    """A context in which :func:`run` returns early; leaving it waits.

    In the thread that entered it, an operator on a tensor that is still to be written waits for it,
    unless it makes a view.

    Args:
        threads: that work; by default the cores this process may use, 8 at most.
        keep_cached: leave what was read in the system's page cache for the next reader.
    """

    def __init__(self, threads: int | None = None, keep_cached: bool = True) -> None:
        super().__init__()
        self._keep_cached = keep_cached
        self._waiting: deque[_Slice] = deque()
        self._pending: set[_Slice] = set()  # waiting, or in work
        self._bytes_ahead = 0
        self._error: GGUFError | None = None
        self._is_closed = False
        self._lock = threading.Lock()
        self._is_work = threading.Condition(self._lock)
        self._is_done = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._work, name=f"load-{i}", daemon=True)
            for i in range(threads or min(default_threads(), _MOST_THREADS))
        ]
        #: Slices given to the stream, and those of them that are done.
        self.submitted = self.finished = 0
        #: The blocks that were used, by :func:`place_of`.
        self.used: set[tuple[int, int]] = set()

    def wait(self) -> None:
        """Return when everything is in place.

        Raises:
            GGUFError: a work failed: the first error.
        """
        with self._lock:
            self._wait_for(lambda: not self._pending)

    def __enter__(self) -> Stream:
        self._outer, _current.stream = getattr(_current, "stream", None), self
        for thread in self._threads:
            thread.start()
        return super().__enter__()

    def __exit__(self, kind: type | None, error: BaseException | None, traceback: Any) -> None:
        super().__exit__(kind, error, traceback)
        _current.stream = self._outer
        try:
            if error is None:
                self.wait()
        finally:
            with self._lock:
                self._waiting.clear()
                self._is_closed = True
                self._is_work.notify_all()
            for thread in self._threads:
                thread.join()

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        for source in tensors:
            if isinstance(source, Streamed):
                self.used.add(place_of(source))
        if self._pending and not func.is_view and not _is_block_copy(func, args):
            spans = [_span(tensor) for tensor in tensors]
            with self._lock:
                self._wait_for(lambda: not any(map(self._is_target, spans)))
        return func(*args, **kwargs)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else torch imports its compiler, which takes a second, to guard each call

    def _wait_for(self, is_so: Callable[[], bool]) -> None:
        """Wait until something is so, or raise what fails before; ``self._lock`` is held."""
        while self._error is None and not is_so():
            self._is_done.wait()
        if self._error is not None:
            raise self._error

    def _add(self, source: Streamed, work: Callable[[], None], out: torch.Tensor | None) -> None:
        piece = _Slice(
            work,
            locate(source.blocks),
            _extent(source.blocks),
            (0, 0) if out is None else _span(out),
        )
        if source.numel() < _FEW_WEIGHTS:
            with self._lock:
                self._wait_for(lambda: not self._is_target(piece.target))
            error = self._done_with(piece)
            if error is not None:
                raise error
            return
        if piece.place is not None:
            file, offset = piece.place
            file.advise(offset, piece.nbytes, os.POSIX_FADV_WILLNEED)
        with self._lock:
            self._wait_for(lambda: not (self._is_full() or self._is_target(piece.target)))
            self.submitted += 1
            self._bytes_ahead += piece.nbytes
            self._pending.add(piece)
            self._waiting.append(piece)
            self._is_work.notify()

    def _is_full(self) -> bool:
        ahead = len(self._waiting)
        return ahead > 0 and (ahead >= _MOST_SLICES_AHEAD or self._bytes_ahead > _MOST_BYTES_AHEAD)

    def _is_target(self, span: tuple[int, int]) -> bool:
        start, end = span
        return any(s.target[0] < end and start < s.target[1] for s in self._pending)

    def _work(self) -> None:
        thread_limit.set(1)
        while True:
            with self._lock:
                while not self._waiting and not self._is_closed:
                    self._is_work.wait()
                if not self._waiting:
                    return
                piece = self._waiting.popleft()
                self._bytes_ahead -= piece.nbytes
            error = self._done_with(piece) if self._error is None else None
            with self._lock:
                self._error = self._error or error
                self.finished += 1
                self._pending.discard(piece)
                self._is_done.notify_all()

    def _done_with(self, piece: _Slice) -> GGUFError | None:
        """Do the work; what is wrong, if it fails."""
        try:
            piece.work()
        except Exception as error:
            return _named(error, piece)
        if piece.place is not None and not self._keep_cached:
            file, offset = piece.place
            file.advise(offset, piece.nbytes, os.POSIX_FADV_DONTNEED)
        return None


def _tensors(arguments: Iterable[Any]) -> Iterator[torch.Tensor]:
    """The tensors among an operator's arguments, and in its lists."""
    for argument in arguments:
        if isinstance(argument, torch.Tensor):
            yield argument
        elif isinstance(argument, list | tuple):
            yield from _tensors(argument)


def _is_block_copy(func: torch._ops.OpOverload, args: tuple) -> bool:
    return func is torch.ops.aten.copy_.default and isinstance(args[1], Streamed)


def _extent(tensor: torch.Tensor) -> int:
    """Bytes from the first to the last of a tensor."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return (sum((n - 1) * step for n, step in steps) + 1) * tensor.itemsize if tensor.numel() else 0


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses of a tensor's bytes; those between them may be another's."""
    return tensor.data_ptr(), tensor.data_ptr() + _extent(tensor)


def _named(error: Exception, piece: _Slice) -> GGUFError:
    """The error with its file and tensor."""
    file, name = None, None
    if piece.place is not None:
        source, offset = piece.place
        file, name = os.fspath(source.path), source.tensor_at(offset)
    if not isinstance(error, GGUFError):
        problem = f"the tensor cannot be loaded: {error or type(error).__name__}"
        named = GGUFError(problem, file=file, tensor=name)
        named.__cause__ = error
        return named
    error.file, error.tensor = error.file or file, error.tensor or name
    return error
