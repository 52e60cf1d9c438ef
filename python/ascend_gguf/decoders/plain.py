"""F32, F16, BF16: plain numbers, a block each, decoded ``y.count`` at a time."""

from __future__ import annotations

from ascend_gguf.codegen.vectors import Bytes, floats_of_halves
from ascend_gguf.decoders.sink import Target


def f32(x: Bytes, y: Target) -> None:
    """IEEE binary32."""
    y.put(0, x.words(0, 32, y.count).as_floats(), usual=False)


def f16(x: Bytes, y: Target) -> None:
    """IEEE binary16."""
    y.put(0, floats_of_halves(x.words(0, 16, y.count)), usual=False)


def bf16(x: Bytes, y: Target) -> None:
    """The upper half of a binary32."""
    y.put(0, (x.words(0, 16, y.count).widened(32) << 16).as_floats(), usual=False)
