"""The self-check: does a device multiply with its packed weights as documented?

What a release of CANN does with a shape or a layout is only known once it has run there.  It may
compute something else, refuse, or lack the operator: weights of that layout and shape then get the
next layout that can hold them, and in the end dense weights.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Hashable
from weakref import WeakKeyDictionary

import torch

from ascend_gguf.ggml_types import BlockType
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout
from ascend_gguf.weights.linear_kernel import EmbeddingKernel, LinearKernel

logger = logging.getLogger(__name__)

#: The largest error, relative to the norm of the right answer.  Rounding to bfloat16 makes less
#: than 0.01; a wrong order, sign or scale makes something near 1.
_LARGEST = 0.05

#: Rows that are compared at the beginning of the weight and at its end.
_ROWS = 32


#: Why a layout is not used, in the report after loading; the log has the problem itself.
_FAILED = "the self-check failed"

#: The longest line of an operator that the log quotes.
_LONGEST_LINE = 240

#: A line of CANN's: its code, in brackets or not, and what it says.
_CANN_LINE = re.compile(r"\b(E[A-Z0-9]\d{4})\)?: *(.+)")
_ONLY_FAILED = re.compile(r"NPU function error|\bERR\d{5}\b")
_STAMP = re.compile(r"\[PID: *\d+\] *|\d{4}-\d\d-\d\d-[\d:.]+ *")

#: How memory that ran out is told: by torch's allocator, by CANN, and by CANN's code alone.
_OUT_OF_MEMORY = re.compile(r"out of memory|\bEL0004\b|\b207001\b", re.IGNORECASE)


class SelfCheck:
    """Checks one weight of each layout and shape, and replaces those that the device gets wrong.

    Args:
        fail: called with each problem that was found, once; raises if loading has to stop.
    """

    def __init__(self, fail: Callable[[str], None]) -> None:
        self._fail = fail
        self._problems: dict[Hashable, str | None] = {}
        # Weights of the same shape and types get the same layout, without trying those between.
        self._next: dict[Hashable, type[Layout]] = {}
        # An output matrix may be the embedding.
        self._replaced: WeakKeyDictionary[Layout, Layout] = WeakKeyDictionary()

    @property
    def results(self) -> Counter[str]:
        """How many layouts and shapes ``passed`` and ``failed``."""
        return Counter("failed" if problem else "passed" for problem in self._problems.values())

    def settled(
        self, layout: Layout, check: Callable[[Layout], str | None], kind: Hashable = None
    ) -> Layout:
        """The layout, or the first after it that the device multiplies with as documented.

        Args:
            check: what is wrong with a layout, or None: one of the functions below.
            kind: what else the check depends on, such as the kernel.

        Raises:
            torch.OutOfMemoryError: and whatever else tells that memory ran out.
        """
        problem = self._problem(layout, check, kind)
        if problem is None or layout in self._replaced:
            return self._replaced.get(layout, layout)
        key = self._key(layout, kind), _types(layout)
        known = self._next.get(key)
        found, problems = layout.next(_FAILED, known), [problem]
        while (problem := self._problem(found, check, kind)) is not None:
            problems.append(problem)
            found = found.next(_FAILED)
        if known is None:
            self._next[key] = type(found)
            for problem in problems:
                logger.error(
                    "falling back to %s weights: self-check failed for %s", found.name, problem
                )
        self._replaced[layout] = found
        return found

    def _problem(
        self, layout: Layout, check: Callable[[Layout], str | None], kind: Hashable
    ) -> str | None:
        if isinstance(layout, Dense):  # the engine's own affair
            return None
        key = self._key(layout, kind)
        if key not in self._problems:
            problem = self._problems[key] = problem_of(layout, check)
            if problem is not None:
                self._fail(problem)
        return self._problems[key]

    @staticmethod
    def _key(layout: Layout, kind: Hashable) -> Hashable:
        """Weights of the same are checked once."""
        tensors = tuple(sorted((n, t.dtype, t.shape) for n, t in layout.tensors.items()))
        return kind, layout.name, layout.dtype, layout.shape, str(tensors)


def problem_of(layout: Layout, check: Callable[[Layout], str | None]) -> str | None:
    """What ``check`` says of a layout, or what an operator raised in it.

    Raises:
        Exception: memory ran out: see :func:`refusal`.
    """
    try:
        return check(layout)
    except Exception as error:
        return f"{_described(layout)}: {refusal(error)}"


def refusal(error: Exception) -> str:
    """What an operator said when it refused: one line, CANN's own if there is one.

    Raises:
        Exception: ``error`` itself, if it tells that memory ran out: that is no refusal.
    """
    text = str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or _OUT_OF_MEMORY.search(text):
        raise error
    lines = [f"{code}: {_STAMP.sub('', said)}" for code, said in _CANN_LINE.findall(text)]
    lines = [line for line in lines if not line.endswith(": Inner Error!")]
    # Other lines: those in which torch_npu only says that there was an error come last.
    others = [line.strip() for line in text.splitlines() if line.strip()]
    lines += sorted(others, key=lambda line: bool(_ONLY_FAILED.search(line)))
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in [*lines, "no message"][0])
    cut = line if len(line) <= _LONGEST_LINE else f"{line[:_LONGEST_LINE]}..."
    return f"{type(error).__name__}: {cut}"


def _types(layout: Layout) -> frozenset[BlockType]:
    return frozenset(layout.source[0].kinds) if layout.source else frozenset()


def linear_mismatch(kernel: LinearKernel, weight: Layout, is_embedding: bool) -> str | None:
    """What is wrong with a linear layer on the device, and with embedding rows; None if nothing.

    Multiplies three random vectors once and compares a few outputs with dense weights.
    """
    rows, cols = weight.shape
    x = _random(3, cols, weight.dtype)
    y = kernel.linear(x.to(weight.device), weight).cpu()
    for part in _ends(rows):
        problem = _difference(y[:, part], x.float() @ weight.sample(part).t())
        if problem is None and is_embedding and isinstance(kernel, EmbeddingKernel):
            ids = torch.arange(part.start, part.stop).to(weight.device)
            problem = _difference(kernel.rows(weight, ids).cpu(), weight.sample(part))
        if problem is not None:
            return f"{_described(weight)}: {problem}"
    return None


def experts_mismatch(
    product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], weight: Layout
) -> str | None:
    """As :func:`linear_mismatch`; ``product`` takes ``x [n, cols]`` and rows of each expert."""
    experts, rows, cols = weight.shape
    counts = torch.zeros(experts, dtype=torch.int64)
    counts[0], counts[-1] = 1, 2
    x = _random(int(counts.sum()), cols, weight.dtype)
    y = product(x.to(weight.device), counts.to(weight.device)).cpu()
    for expert, inputs in ((experts - 1, slice(-2, None)), (0, slice(0, 1))):
        for part in _ends(rows):
            expected = x[inputs].float() @ weight.sample(part, expert).t()
            problem = _difference(y[inputs, part], expected)
            if problem is not None:
                return f"{_described(weight)}: {problem}"
    return None


def _random(rows: int, cols: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator(device="cpu").manual_seed(rows * cols)
    return torch.randn(rows, cols, generator=generator, device="cpu").to(dtype)


def _ends(rows: int) -> list[slice]:
    return [slice(0, min(rows, _ROWS)), slice(max(0, rows - _ROWS), rows)]


def _described(weight: Layout) -> str:
    shape = " x ".join(map(str, weight.shape))
    return f"{weight.name} {shape} in {str(weight.dtype).removeprefix('torch.')}"


def _difference(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    error = (found.float() - expected).norm() / expected.norm().clamp(min=1e-30)
    if error <= _LARGEST:  # not so for NaN
        return None
    return f"relative error {error:.2g}"
