"""Q2_K to Q6_K: 256 weights, their scales (and offsets) quantized in turn.

Q2_K, Q3_K and Q6_K have a scale for each 16 weights, in order.
Source: ggml's ``dequantize_row_q2_K`` and so on.
"""

from __future__ import annotations

from ascend_gguf.codegen import Value
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink


def _place(group: int) -> tuple[int, int, int]:
    """Of 16 weights: which 128 they are of, which 32 of those, and which 16 of those."""
    return group // 8, group // 2 % 4, group % 2


def q2_k(x: Block, y: Sink) -> None:
    """``nibble scale, offset [16]``, ``2 bits q[256]``, ``half d, m``: ``d scale q - m offset``."""
    packed = x.bytes(0)
    scales = packed.field(0, 4).to_float() * x.half(80)
    offsets = packed.field(4, 4).to_float() * x.half(82)
    for group in range(16):
        part, row, side = _place(group)
        q = x.bytes(16 + 32 * part + 16 * side).field(2 * row, 2)
        y.scaled(16 * group, q, scales[group], minus=offsets[group])


def q3_k(x: Block, y: Sink) -> None:
    """``bit h[256]``, ``2 bits q[256]``, ``6 bits scale[16]``, ``half d``.

    ``d (scale - 32) (q + 4 h - 4)``.
    """
    low, high = x.bytes(96, 8), x.bytes(104, 4)
    low = low.field(0, 4).concat(low.field(4, 4))
    upper = [high.field(bit, 2, 4) for bit in (0, 2, 4, 6)]
    high = upper[0].concat(upper[1]).concat(upper[2].concat(upper[3]))
    scales = ((low | high) - 32).to_float(signed=True) * x.half(108)
    for group in range(16):
        part, row, side = _place(group)
        q = x.bytes(32 + 32 * part + 16 * side).field(2 * row, 2)
        h = x.bytes(16 * side).field(4 * part + row, 1, 2)
        y.scaled(16 * group, (q | h) - 4, scales[group])


def _scales_and_offsets(x: Block) -> tuple[Value, Value]:
    """Eight of each, of Q4_K and Q5_K; the last four have their upper two bits apart."""
    scales, offsets, more = x.bytes(0, 4), x.bytes(4, 4), x.bytes(8, 4)
    last_scales = more.field(0, 4) | scales.field(6, 2, 4)
    last_offsets = more.field(4, 4) | offsets.field(6, 2, 4)
    return scales.field(0, 6).concat(last_scales), offsets.field(0, 6).concat(last_offsets)


def q4_k(x: Block, y: Sink) -> None:
    """``half d, m``, ``6 bits scale, offset [8]``, ``nibble q[256]``.

    ``d scale q - m offset``, a scale and an offset for 32 weights.
    """
    scales, offsets = _scales_and_offsets(x.at(4))
    scales, offsets = scales.to_float() * x.half(0), offsets.to_float() * x.half(2)
    for group in range(16):
        part, half, side = group // 4, group // 2 % 2, group % 2
        q = x.bytes(16 + 32 * part + 16 * side).field(4 * half, 4)
        y.scaled(16 * group, q, scales[group // 2], minus=offsets[group // 2])


def q5_k(x: Block, y: Sink) -> None:
    """``half d, m``, ``6 bits scale, offset [8]``, ``bit h[256]``, ``nibble q[256]``.

    ``d scale (q + 16 h) - m offset``, a scale and an offset for 32 weights.
    """
    scales, offsets = _scales_and_offsets(x.at(4))
    scales, offsets = scales.to_float() * x.half(0), offsets.to_float() * x.half(2)
    for group in range(16):
        part, half, side = group // 4, group // 2 % 2, group % 2
        q = x.bytes(48 + 32 * part + 16 * side).field(4 * half, 4)
        h = x.bytes(16 + 16 * side).field(group // 2, 1, 4)
        y.scaled(16 * group, q | h, scales[group // 2], minus=offsets[group // 2])


def q6_k(x: Block, y: Sink) -> None:
    """``nibble q[256]``, ``2 bits h[256]``, ``int8 scale[16]``, ``half d``.

    ``d scale (q + 16 h - 32)``.
    """
    scales = x.bytes(192).to_float(signed=True) * x.half(208)
    for group in range(16):
        part, row, side = _place(group)
        q = x.bytes(64 * part + 32 * (row % 2) + 16 * side).field(4 * (row // 2), 4)
        h = x.bytes(128 + 32 * part + 16 * side).field(2 * row, 2, 4)
        y.scaled(16 * group, (q | h) - 32, scales[group])
