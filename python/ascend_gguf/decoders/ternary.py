"""Q1_0, TQ1_0, TQ2_0: weights of two or three values, with one scale.

Source: ggml's ``dequantize_row_q1_0`` and so on.
"""

from __future__ import annotations

from ascend_gguf.codegen import I8, I16, LANES, Value, splat
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink


def q1_0(x: Block, y: Sink) -> None:
    """``half d``, ``bit q[128]``: ``d`` or, where the bit is 0, ``-d``."""
    d, ones = x.half(0), splat(1, LANES, I8)
    for start in range(0, 128, 16):
        bits = x.read(I16, 2 + start // 8)
        y.scaled(start, ones, d, negative=bits ^ 0xFFFF)


def _digits(fractions: Value) -> Value:
    """The first ternary digit of each fraction of 256, less 1."""
    return (fractions.zext(I16) * 3 >> 8).trunc(I8) - 1


def tq1_0(x: Block, y: Sink) -> None:
    """5 digits a byte in 48 bytes, 4 digits a byte in 4 bytes, ``half d``: ``d digit``.

    A byte is a fraction of 256; 3 to the power of a digit's place moves the digit to the front.
    """
    d = x.half(52)
    for place in range(5):
        for start in range(0, 32, 16):
            y.scaled(32 * place + start, _digits(x.bytes(start) * 3**place), d)
        y.scaled(160 + 16 * place, _digits(x.bytes(32) * 3**place), d)
    powers = [3**place for place in range(4) for _ in range(4)]
    y.scaled(240, _digits(x.bytes(48, 4).take([0, 1, 2, 3] * 4) * powers), d)


def tq2_0(x: Block, y: Sink) -> None:
    """``2 bits q[256]``, ``half d``: ``d (q - 1)``."""
    d = x.half(64)
    for group in range(16):
        part, row, side = group // 8, group // 2 % 4, group % 2
        q = x.bytes(32 * part + 16 * side).field(2 * row, 2)
        y.scaled(16 * group, q - 1, d)
