"""The IQ types: weights looked up in a grid of the vectors that occur most, with signs apart.

An entry of a grid is eight weights, in IQ3 four.  Grids and signs are gguf-py's.
Source: ggml's ``dequantize_row_iq2_xxs`` and so on.
"""

from __future__ import annotations

import numpy as np
from gguf import quants

from ascend_gguf.codegen import F16, F32, I8, I16, I32, Value, canonical_half, table, widened
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink


def _grid(
    kind: type[
        quants.IQ1_S | quants.IQ2_S | quants.IQ2_XS | quants.IQ2_XXS | quants.IQ3_S | quants.IQ3_XXS
    ],
) -> Block:
    """A type's grid, a byte a weight."""
    kind.init_grid()
    return Block(table("grid", np.asarray(kind.grid, np.int8)))


def _signs(code: Value) -> Value:
    """Eight sign bits for a code of seven: the eighth makes their count even."""
    signs = Block(table("signs", np.frombuffer(quants.IQ2_XXS.ksigns, dtype=np.uint8)))
    return signs.at(code).byte(0)


def _paired(first: Value, second: Value) -> Value:
    """Two bytes as one of 16 bits."""
    return first.zext(I16) | second.zext(I16) << 8


def _eight(grid: Block, entry: Value) -> Value:
    return grid.at(entry.zext(I32) * 8).bytes(0, 8)


def _four(grid: Block, entry: Value) -> Value:
    return grid.at(entry.zext(I32) * 4).bytes(0, 4)


def iq2_xxs(x: Block, y: Sink) -> None:
    """``half d``, 8 times ``byte entry[4]``, ``7 bits signs[4]``, ``4 bits scale``."""
    d, grid = x.half(0), _grid(quants.IQ2_XXS)
    for group in range(16):
        part, k = x.at(2 + group // 2 * 8), 2 * (group % 2)
        packed = part.read(I32, 4)
        scale = d * ((packed >> 28).to_float() + 0.5) * 0.25
        codes = _eight(grid, part.byte(k)).concat(_eight(grid, part.byte(k + 1)))
        signs = [_signs(packed >> 7 * i & 127) for i in (k, k + 1)]
        y.scaled(16 * group, codes, scale, negative=_paired(*signs))


def iq2_xs(x: Block, y: Sink) -> None:
    """``half d``, ``9 bits entry, 7 bits signs [32]``, ``nibble scale[16]`` for 16 weights."""
    d, grid = x.half(0), _grid(quants.IQ2_XS)
    for group in range(16):
        scale = x.byte(66 + group // 2).field(4 * (group % 2), 4)
        scale = d * (scale.to_float() + 0.5) * 0.25
        packed = [x.read(I16, 2 + 4 * group + 2 * k) for k in range(2)]
        first, second = (_eight(grid, p & 511) for p in packed)
        signs = [_signs(p >> 9) for p in packed]
        y.scaled(16 * group, first.concat(second), scale, negative=_paired(*signs))


def iq2_s(x: Block, y: Sink) -> None:
    """``half d``, ``byte entry[32]``, ``byte signs[32]``, 2 bits more of each entry, 16 scales."""
    d, grid = x.half(0), _grid(quants.IQ2_S)
    for group in range(16):
        scale = x.byte(74 + group // 2).field(4 * (group % 2), 4)
        scale = d * (scale.to_float() + 0.5) * 0.25
        more = x.byte(66 + group // 2)
        entries = [
            _paired(x.byte(2 + i), more.field(i % 4 * 2, 2)) for i in (2 * group, 2 * group + 1)
        ]
        codes = _eight(grid, entries[0]).concat(_eight(grid, entries[1]))
        signs = x.read(I16, 34 + 2 * group)
        y.scaled(16 * group, codes, scale, negative=signs)


def _fours(grid: Block, entries: list[Value]) -> Value:
    a, b, c, d = (_four(grid, entry) for entry in entries)
    return a.concat(b).concat(c.concat(d))


def iq3_xxs(x: Block, y: Sink) -> None:
    """``half d``, ``byte entry[64]``, 8 times ``7 bits signs[4]``, ``4 bits scale``."""
    d, grid = x.half(0), _grid(quants.IQ3_XXS)
    for group in range(16):
        packed, k = x.read(I32, 66 + group // 2 * 4), 2 * (group % 2)
        scale = d * ((packed >> 28).to_float() + 0.5) * 0.5
        codes = _fours(grid, [x.byte(2 + 4 * group + i) for i in range(4)])
        signs = [_signs(packed >> 7 * i & 127) for i in (k, k + 1)]
        y.scaled(16 * group, codes, scale, negative=_paired(*signs))


def iq3_s(x: Block, y: Sink) -> None:
    """``half d``, ``byte entry[64]``, a bit more of each, ``byte signs[32]``, 8 scales."""
    d, grid = x.half(0), _grid(quants.IQ3_S)
    for group in range(16):
        part, k = group // 2, group % 2
        scale = x.byte(106 + part // 2).field(part % 2 * 4, 4)
        scale = d * (scale * 2 + 1).to_float()
        more = x.byte(66 + part)
        codes = _fours(
            grid, [_paired(x.byte(2 + 4 * group + i), more.field(4 * k + i, 1)) for i in range(4)]
        )
        signs = x.read(I16, 74 + 2 * group)
        y.scaled(16 * group, codes, scale, negative=signs)


def _delta(sign: Value) -> Value:
    """An eighth, negative if the bit is set."""
    return (sign.zext(I32) << 31 | 0x3E000000).bitcast(F32)


def iq1_s(x: Block, y: Sink) -> None:
    """``half d``, ``byte entry[32]``, 8 words: 3 bits more of 4 entries, a scale, a sign."""
    d, grid = x.half(0), _grid(quants.IQ1_S)
    for group in range(16):
        packed, k = x.read(I16, 34 + group // 2 * 2), 2 * (group % 2)
        scale = d * (packed.field(12, 3, 1) + 1).to_float()
        first, second = (
            _eight(grid, x.byte(2 + 2 * group + i).zext(I16) | packed.field(3 * (k + i), 3, 8))
            for i in range(2)
        )
        y.scaled(16 * group, first.concat(second), scale, shift=_delta(packed >> 15))


def iq1_m(x: Block, y: Sink) -> None:
    """``byte entry[32]``, ``3 bits more, sign [32]``, 4 words: 4 scales, a quarter of ``d``."""
    words = [x.read(I16, 48 + 2 * i) for i in range(4)]
    quarters = [word.field(12, 4, 4 * i) for i, word in enumerate(words)]
    d = widened(canonical_half(quarters[0] | quarters[1] | quarters[2] | quarters[3]), F16)
    grid = _grid(quants.IQ1_S)
    for group in range(16):
        scale = d * (words[group // 4].field(group % 4 * 3, 3, 1) + 1).to_float()
        more = x.byte(32 + group)
        first, second = (
            _eight(grid, _paired(x.byte(2 * group + k), more.field(4 * k, 3))) for k in range(2)
        )
        # In eighths, so that they are whole.
        codes = first.concat(second) << 3
        is_less = _paired(more.field(3, 1) * 255, more.field(7, 1) * 255).bits()
        codes = codes + is_less.select(codes.filled(-1), codes.filled(1))
        y.scaled(16 * group, codes, scale * 0.125)


def _codes(q: Value) -> Value:
    return q.lookup(quants.IQ4_NL.kvalues)


def iq4_nl(x: Block, y: Sink) -> None:
    """``half d``, ``nibble q[32]``, low nibbles first."""
    d, q = x.half(0), x.bytes(2)
    for half in range(2):
        y.scaled(16 * half, _codes(q.field(4 * half, 4)), d)


def iq4_xs(x: Block, y: Sink) -> None:
    """``half d``, 2 upper and 4 lower bits of 8 scales, ``nibble q[256]``."""
    d, high = x.half(0), x.read(I16, 2)
    for part in range(8):
        low = x.byte(4 + part // 2).field(part % 2 * 4, 4)
        scale = (low | high.field(2 * part, 2).trunc(I8) << 4) - 32
        scale = d * scale.to_float(signed=True)
        q = x.bytes(8 + 16 * part)
        for half in range(2):
            y.scaled(32 * part + 16 * half, _codes(q.field(4 * half, 4)), scale)
