"""Functions of whole numbers of a few values, looked up instead of computed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ascend_gguf.codegen.backend import backend
from ascend_gguf.codegen.kinds import F32, I8, I16
from ascend_gguf.codegen.value import Codebook, Value


def lookup_words(codebook: Codebook, function: Callable[[Value], Value], count: int) -> Value:
    """16 bits for each whole number: ``function`` of it, which it is given as float32.

    Instructions of processors with :data:`.processor.BFLOAT_INSTRUCTIONS`.

    Args:
        count: whole numbers there are, 16 or 32; no more than twice as many values.
    """
    values = np.resize(codebook.values, max(len(codebook.values), count)).reshape(-1, count)
    tables = [function(_floats(table)).raw for table in values]
    # Bits that do not belong to the code do not matter.
    codes = (codebook.source.trunc(I8).zext(I16) >> codebook.shifts).raw
    name, arguments = "permvar", [tables[0], codes]
    if len(tables) == 2:
        name, arguments = "vpermi2var", [tables[0], codes, tables[1]]
    raw = backend().call(f"llvm.x86.avx512.{name}.hi.{16 * count}", I16, count, *arguments)
    return Value(raw, I16, count)


def _floats(numbers: np.ndarray) -> Value:
    return Value(backend().constant(F32, [float(n) for n in numbers]), F32, len(numbers))
