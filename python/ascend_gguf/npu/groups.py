"""CodeRange in groups, with a scale and perhaps an offset each: how those of a block type are kept.

A weight is ``scale * (code + offset)``.  The codes of a type are kept, moved to fit, and its scale
is rounded once, to the dtype of the layout: but for that it is exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from ascend_gguf.ggml_types import BlockType, CodeRange
from ascend_gguf.weights.layout import NOT_QUANTIZED

if TYPE_CHECKING:  # a compiler, which who only asks what fits need not wait for
    from ascend_gguf.codegen import Value

    _Offset = TypeVar("_Offset", Value, float)

#: Weights with one scale in the Ascend operators: the fewest they take.
GROUP = 32

#: Rows in 32 bits of codes that are packed by columns, by the bits of a code.
ROWS_OF_WORD = {4: 8, 8: 4}


def codes_of(kind: BlockType) -> CodeRange:
    """The codes of a type that a packing can keep."""
    if kind.codes is None:
        raise TypeError(f"{kind.name} is not quantized")
    return kind.codes


@dataclass(frozen=True, slots=True)
class Packing:
    """How codes are kept.

    Attributes:
        bits: for a weight: 4, two codes to a byte, the first in the low half; or 8.
        low, high: the least and the greatest code that is kept.
        group: weights with one scale.
        planes: a code of 8 bits is kept as two of 4, ``16 high + low``, low from -8 to 7: those
            of a group together, high ones first.  The scale is for the high ones, and the
            operator is given a sixteenth of the input for the low ones.
        requantizes: whether a group may span two scales of a type, see :mod:`.conversion`.
        apart: codes are left a byte each, planes not taken apart, to be packed in another order.
    """

    bits: int
    low: int
    high: int
    group: int = GROUP
    planes: bool = False
    requantizes: bool = False
    apart: bool = False

    def fits(self, codes: CodeRange) -> bool:
        """Whether there are enough bits for the codes of a type."""
        return (codes.high - codes.low) // self._step(codes) <= self.high - self.low

    def _step(self, codes: CodeRange) -> int:
        return codes.step if self.bits == 4 else 1

    def place(self, codes: CodeRange) -> tuple[int, int]:
        """``(first, step)``: a code that fits is kept as ``(code - first) / step``."""
        low, high, step = codes.low, codes.high, self._step(codes)
        if step == 1 and self.low <= low and high <= self.high:
            # Offsets near 0 round least.
            return ((low + high + 1) // 2 if codes.has_offset else 0), step
        return low - step * self.low, step

    def unsupported_reason(self, kind: BlockType) -> str | None:
        """Why a type cannot be kept so, as a clause; None if it can."""
        codes = kind.codes
        if codes is None:
            return NOT_QUANTIZED
        if not self.fits(codes):
            return f"{kind.name} does not fit {self.bits} bits"
        if codes.group < self.group and (codes.has_offset or not self.requantizes):
            return f"{kind.name} has a scale for {codes.group} weights"
        return None

    def constant_offset(self, kind: BlockType) -> float | None:
        """The offset of every group of a type kept so; None if they differ."""
        codes = codes_of(kind)
        if codes.has_offset:
            return None
        first, step = self.place(codes)
        return self.offset(first / step)

    def offset(self, value: _Offset) -> _Offset:
        """What the operator is given to be added for an offset."""
        # Where low codes meet a sixteenth of the input, an offset counts 17 sixteenths.
        return value / 17.0 if self.planes else value

    @property
    def stored_bits(self) -> int:
        """Bits of a code as it is written."""
        return 8 if self.apart else self.bits

    @property
    def code_bits(self) -> int:
        """Bits of a code as the operator takes it."""
        return 4 if self.planes else self.bits

    @property
    def packed_dtype(self) -> torch.dtype:
        """What the operator takes codes in: eight of 4 bits, or one of 8."""
        return torch.int32 if self.code_bits == 4 else torch.int8

    @property
    def operator_group(self) -> int:
        """Codes with one scale, as the operator takes them."""
        return 2 * self.group if self.planes else self.group
