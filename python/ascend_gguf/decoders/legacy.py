"""Q4_0, Q4_1, Q5_0, Q5_1, Q8_0: 32 weights with one scale, and an offset where ``_1``.

Low nibbles are weights 0 to 15, high ones 16 to 31.
Source: ggml's ``dequantize_row_q4_0`` and so on.
"""

from __future__ import annotations

from ascend_gguf.codegen import I8, I16, I32, Value
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink


def q4_0(x: Block, y: Sink) -> None:
    """``half d``, ``nibble q[32]``: ``d (q - 8)``."""
    d, q = x.half(0), x.bytes(2)
    for half in range(2):
        y.scaled(16 * half, q.field(4 * half, 4) - 8, d)


def q4_1(x: Block, y: Sink) -> None:
    """``half d, m``, ``nibble q[32]``: ``d q + m``."""
    d, m, q = x.half(0), x.half(2), x.bytes(4)
    for half in range(2):
        y.scaled(16 * half, q.field(4 * half, 4), d, plus=m)


def _five_bits(q: Value, h: Value, half: int) -> Value:
    """16 codes from their nibbles and 16 upper bits."""
    upper = (h >> 16 * half).trunc(I16).bits().zext(I8)
    return q.field(4 * half, 4) | upper.field(0, 1, 4)


def q5_0(x: Block, y: Sink) -> None:
    """``half d``, ``bit h[32]``, ``nibble q[32]``: ``d (q + 16 h - 16)``."""
    d, h, q = x.half(0), x.read(I32, 2), x.bytes(6)
    for half in range(2):
        y.scaled(16 * half, _five_bits(q, h, half) - 16, d)


def q5_1(x: Block, y: Sink) -> None:
    """``half d, m``, ``bit h[32]``, ``nibble q[32]``: ``d (q + 16 h) + m``."""
    d, m, h, q = x.half(0), x.half(2), x.read(I32, 4), x.bytes(8)
    for half in range(2):
        y.scaled(16 * half, _five_bits(q, h, half), d, plus=m)


def q8_0(x: Block, y: Sink) -> None:
    """``half d``, ``int8 q[32]``: ``d q``."""
    d = x.half(0)
    for start in range(0, 32, 16):
        y.scaled(start, x.bytes(2 + start), d)
