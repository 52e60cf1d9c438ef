"""What values are: whole numbers of a width, floats, and addresses of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Kind:
    """What one lane of a value is.

    Attributes:
        name: as LLVM calls it; ``pointer`` for an address.
        bits: its width.
        is_float: whether it is a floating-point number.
        element: of an address, what lies there.
    """

    name: str
    bits: int
    is_float: bool = False
    element: Kind | None = None

    @property
    def nbytes(self) -> int:
        return -(-self.bits // 8)

    @property
    def stored(self) -> Kind:
        """As what it is loaded and stored: the bits of 16-bit floats."""
        return I16 if self.is_float and self.bits == 16 else self


I1, I8, I16, I32, I64 = (Kind(f"i{bits}", bits) for bits in (1, 8, 16, 32, 64))
F16, BF16, F32 = Kind("half", 16, True), Kind("bfloat", 16, True), Kind("float", 32, True)

#: Of a kernel's last parameter: the address of launch arguments after the others.
REST = Kind("rest", 64, element=I64)

#: What memory of a dtype holds.  Arithmetic on all of them is float32.
FLOATS = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}

_INTEGERS = {torch.int32: I32, torch.int64: I64}

#: Lanes of a vector, as a rule: 64 bytes of float32.
LANES = 16


@functools.cache
def rows(element: Kind | torch.dtype) -> Kind:
    """Of a kernel's parameter: rows of memory, evenly spaced, as a :class:`~.memory.Rows`."""
    return Kind("rows", 128, element=pointer(element).element)


def is_rows(kind: Kind) -> bool:
    """Whether it is of :func:`rows`."""
    return kind.name == "rows"


@functools.cache
def pointer(element: Kind | torch.dtype) -> Kind:
    """The address of an array."""
    kind = element if isinstance(element, Kind) else (FLOATS | _INTEGERS)[element]
    return Kind("pointer", 64, element=kind)
