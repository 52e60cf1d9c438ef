"""Computations captured once and done again on the same memory: a CUDA graph's like for the host.

A model's step is some thousand calls of Python around a few hundred kernels.  Captured, it is the
kernels: those of this package one after another without Python, operators of torch between them.
"""

from __future__ import annotations

import contextlib
import functools
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from ascend_gguf.codegen import threads
from ascend_gguf.codegen.threads import Code
from ascend_gguf.cpu.kernel_sequence import KernelSequence
from ascend_gguf.cpu.lowering import LOWERINGS

T = TypeVar("T")
_aten = torch.ops.aten

# Give memory that holds nothing yet.
_EMPTY = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
    _aten.new_empty_strided.default,
}
# Hand values to Python without an operator.
_READS = {
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.__dlpack__,
    torch.Tensor.__reduce_ex__,
}
_UNFIT_TAGS = {
    torch.Tag.data_dependent_output: "it hands values to Python",
    torch.Tag.dynamic_output_shape: "the shape of its result depends on values",
    torch.Tag.nondeterministic_seeded: "its results are random",
}


class NotCapturable(Exception):
    """What a function does depends on more than the values in its tensors; says how."""


class Graph:
    """What a function did: see :func:`capture`.

    Attributes:
        nbytes: of memory that is the graph's own.
    """

    def __init__(
        self, steps: list[Callable[[], object]], kept: list[torch.Tensor], nbytes: int
    ) -> None:
        self._steps = steps
        self._kept = kept
        self.nbytes = nbytes

    def replay(self) -> None:
        """Do it again: from what is now in the function's inputs, into its results."""
        for step in self._steps:
            step()


def capture(function: Callable[[], T]) -> tuple[Graph, T]:
    """Call a function, and note what it does.

    All values must come from tensors, which :meth:`Graph.replay` reads again where they are, and
    go to tensors.  What Python computes besides is the same in each replay: the caller answers for
    that, and that tensors from outside stay where they are.

    Returns:
        What to replay, and the function's result, whose tensors each replay writes anew.

    Raises:
        NotCapturable: an operator or Python itself would need values.
    """
    global _capture
    _capture = noted = _Capture()
    try:
        with noted, _NoReads(noted), threads.listening(noted.note_kernel):
            result = function()
    finally:
        _capture = None
    return Graph(noted.steps(), noted.kept, noted.nbytes), result


_capture: _Capture | None = None


def host_call(function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """``function(*args)``, which a graph calls again as it is: it may look at values.

    Its result must always be of the same shape, and nothing else may become of it but what it
    writes to its arguments.
    """
    noted = _capture
    if noted is None or noted.is_suspended:
        return function(*args)
    with noted.suspended():
        out = function(*args)
    noted.keep(args)
    noted.keep(out)
    noted.add(lambda: out.copy_(function(*args)))
    return out


class _Capture(TorchDispatchMode):
    """Sees the operators of torch, and is told of kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[torch.Tensor] = []
        self.nbytes = 0
        self.is_suspended = False
        self._noted: list[Callable[[], object] | tuple[Code, array]] = []

    def keep(self, values: object) -> None:
        """Memory of these is used by what was noted."""
        self.kept += _tensors(values)

    def add(self, step: Callable[[], object]) -> None:
        self._noted.append(step)

    def note_kernel(self, code: Code, launch: array) -> None:
        self._noted.append((code, launch[:]))

    def steps(self) -> list[Callable[[], object]]:
        """What was noted, kernels that follow each other as one."""
        steps: list[Callable[[], object]] = []
        launches: list[tuple[Code, array]] = []
        for what in [*self._noted, None]:
            if isinstance(what, tuple):
                launches.append(what)
                continue
            if launches:
                steps.append(KernelSequence(launches).run)
                launches = []
            if what is not None:
                steps.append(what)
        return steps

    @contextlib.contextmanager
    def suspended(self) -> Iterator[None]:
        """Inside, nothing is noted, and everything is allowed."""
        before, self.is_suspended = self.is_suspended, True
        try:
            with threads.listening(None):
                yield
        finally:
            self.is_suspended = before

    def __torch_dispatch__(
        self,
        func: OpOverload,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self.is_suspended:
            return func(*args, **kwargs)
        if func._can_decompose():
            with self:
                out = func.decompose(*args, **kwargs)
            if out is not NotImplemented:
                return out
        if unsupported_reason := _unsupported_reason(func, args):
            raise NotCapturable(f"{func}: {unsupported_reason}")
        with self.suspended():
            out = func(*args, **kwargs)
        self.keep((args, kwargs, out))
        self._note_operator(func, args, kwargs, out)
        return out

    def _note_operator(self, func: OpOverload, args: tuple, kwargs: dict, out: Any) -> None:
        results, inputs = _tensors(out), set(map(_memory, _tensors((args, kwargs))))
        new = [t for t in results if _memory(t) not in inputs]
        self.nbytes += sum(t.untyped_storage().nbytes() for t in new)
        if func in _EMPTY or (results and not new and not func._schema.is_mutable):
            return  # a place without values, or a view
        if func in LOWERINGS:
            with self.suspended(), threads.listening(self.note_kernel):
                if LOWERINGS[func](out, *args, **kwargs):
                    return
        if not new:
            self.add(functools.partial(func, *args, **kwargs))
        elif len(new) < len(results):
            raise NotCapturable(f"{func}: some of its results are new and some are not")
        elif into := _into(func):
            names = [a.name for a in into._schema.arguments if a.is_out]
            outs = dict(zip(names, results, strict=True))
            self.add(functools.partial(into, *args, **kwargs, **outs))
        else:
            self.add(functools.partial(_copy_anew, func, args, kwargs, results))


class _NoReads(TorchFunctionMode):
    """Refuses what hands values to Python without an operator."""

    def __init__(self, noted: _Capture) -> None:
        super().__init__()
        self._noted = noted

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _READS and not self._noted.is_suspended:
            raise NotCapturable(f"{func.__name__}: Python reads values")
        out = func(*args, **(kwargs or {}))
        self._noted.keep(out)
        return out


def _unsupported_reason(func: OpOverload, args: tuple) -> str | None:
    """Why an operator cannot be called again without Python's help."""
    if func.namespace in ("c10d", "_c10d_functional"):
        return "it waits for other processes"
    if func is _aten.index.Tensor and not any(
        index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
    ):
        return None  # places, not a mask
    return next((why for tag, why in _UNFIT_TAGS.items() if tag in func.tags), None)


def _tensors(values: object) -> list[torch.Tensor]:
    return [t for t in pytree.tree_leaves(values) if isinstance(t, torch.Tensor)]


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _copy_anew(func: OpOverload, args: tuple, kwargs: dict, results: list[torch.Tensor]) -> None:
    for target, source in zip(results, _tensors(func(*args, **kwargs)), strict=True):
        target.copy_(source)


@functools.cache
def _into(func: OpOverload) -> OpOverload | None:
    """The same operator that writes its results to given tensors, where it has such a form."""
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        other = getattr(func.overloadpacket, name)
        arguments = other._schema.arguments
        given = [(a.name, str(a.type)) for a in arguments if not a.is_out]
        outs = len(arguments) - len(given)
        if given == wanted and outs == len(func._schema.returns):
            return other
    return None
