"""F32, F16, BF16: unquantized, a block each, decoded ``y.count`` at a time."""

from __future__ import annotations

from ascend_gguf.codegen import BF16, F16, F32
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink


def f32(x: Block, y: Sink) -> None:
    """IEEE binary32."""
    y.put(0, x.read(F32, 0, y.count), normal=False)


def f16(x: Block, y: Sink) -> None:
    """IEEE binary16."""
    y.put(0, x.read(F16, 0, y.count), normal=False)


def bf16(x: Block, y: Sink) -> None:
    """The upper half of a binary32."""
    y.put(0, x.read(BF16, 0, y.count), normal=False)
