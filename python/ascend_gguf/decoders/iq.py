"""The IQ types: weights looked up in a grid of the vectors that occur most, with signs apart.

An entry of a grid is eight weights, in IQ3 four.  Grids and signs are gguf-py's.
Source: ggml's ``dequantize_row_iq2_xxs`` and so on.
"""

from __future__ import annotations

import numpy as np
from gguf import quants

from ascend_gguf.codegen.vectors import Bytes, Vector, floats_of_halves, usual_half
from ascend_gguf.decoders.sink import Target


def _grid(
    x: Bytes,
    kind: type[
        quants.IQ1_S | quants.IQ2_S | quants.IQ2_XS | quants.IQ2_XXS | quants.IQ3_S | quants.IQ3_XXS
    ],
) -> Bytes:
    """A type's grid, a byte a number."""
    kind.init_grid()
    return x.table("grid", np.asarray(kind.grid, np.int8))


def _signs(x: Bytes, code: Vector) -> Vector:
    """Eight sign bits for a code of seven: the eighth makes their number even."""
    signs = x.table("signs", np.frombuffer(quants.IQ2_XXS.ksigns, dtype=np.uint8))
    return signs.at(code).byte(0)


def _paired(first: Vector, second: Vector) -> Vector:
    """Two bytes as a number of 16 bits."""
    return first.widened(16) | second.widened(16) << 8


def _eight(grid: Bytes, entry: Vector) -> Vector:
    return grid.at(entry.widened(32) * 8).bytes(0, 8)


def _four(grid: Bytes, entry: Vector) -> Vector:
    return grid.at(entry.widened(32) * 4).bytes(0, 4)


def iq2_xxs(x: Bytes, y: Target) -> None:
    """``half d``, 8 times ``byte entry[4]``, ``7 bits signs[4]``, ``4 bits scale``."""
    d, grid = x.half(0), _grid(x, quants.IQ2_XXS)
    for group in range(16):
        part, k = x.at(2 + group // 2 * 8), 2 * (group % 2)
        packed = part.word(4, 32)
        scale = d * ((packed >> 28).floats() + 0.5) * 0.25
        numbers = _eight(grid, part.byte(k)).then(_eight(grid, part.byte(k + 1)))
        signs = [_signs(x, packed >> 7 * i & 127) for i in (k, k + 1)]
        y.scaled(16 * group, numbers, scale, negative=_paired(*signs))


def iq2_xs(x: Bytes, y: Target) -> None:
    """``half d``, ``9 bits entry, 7 bits signs [32]``, ``nibble scale[16]`` for 16 weights."""
    d, grid = x.half(0), _grid(x, quants.IQ2_XS)
    for group in range(16):
        scale = x.byte(66 + group // 2).field(4 * (group % 2), 4)
        scale = d * (scale.floats() + 0.5) * 0.25
        packed = [x.word(2 + 4 * group + 2 * k, 16) for k in range(2)]
        first, second = (_eight(grid, p & 511) for p in packed)
        signs = [_signs(x, p >> 9) for p in packed]
        y.scaled(16 * group, first.then(second), scale, negative=_paired(*signs))


def iq2_s(x: Bytes, y: Target) -> None:
    """``half d``, ``byte entry[32]``, ``byte signs[32]``, 2 bits more of each entry, 16 scales."""
    d, grid = x.half(0), _grid(x, quants.IQ2_S)
    for group in range(16):
        scale = x.byte(74 + group // 2).field(4 * (group % 2), 4)
        scale = d * (scale.floats() + 0.5) * 0.25
        more = x.byte(66 + group // 2)
        entries = [
            _paired(x.byte(2 + i), more.field(i % 4 * 2, 2)) for i in (2 * group, 2 * group + 1)
        ]
        numbers = _eight(grid, entries[0]).then(_eight(grid, entries[1]))
        signs = x.word(34 + 2 * group, 16)
        y.scaled(16 * group, numbers, scale, negative=signs)


def _fours(grid: Bytes, entries: list[Vector]) -> Vector:
    a, b, c, d = (_four(grid, entry) for entry in entries)
    return a.then(b).then(c.then(d))


def iq3_xxs(x: Bytes, y: Target) -> None:
    """``half d``, ``byte entry[64]``, 8 times ``7 bits signs[4]``, ``4 bits scale``."""
    d, grid = x.half(0), _grid(x, quants.IQ3_XXS)
    for group in range(16):
        packed, k = x.word(66 + group // 2 * 4, 32), 2 * (group % 2)
        scale = d * ((packed >> 28).floats() + 0.5) * 0.5
        numbers = _fours(grid, [x.byte(2 + 4 * group + i) for i in range(4)])
        signs = [_signs(x, packed >> 7 * i & 127) for i in (k, k + 1)]
        y.scaled(16 * group, numbers, scale, negative=_paired(*signs))


def iq3_s(x: Bytes, y: Target) -> None:
    """``half d``, ``byte entry[64]``, a bit more of each, ``byte signs[32]``, 8 scales."""
    d, grid = x.half(0), _grid(x, quants.IQ3_S)
    for group in range(16):
        part, k = group // 2, group % 2
        scale = x.byte(106 + part // 2).field(part % 2 * 4, 4)
        scale = d * (scale * 2 + 1).floats()
        more = x.byte(66 + part)
        numbers = _fours(
            grid,
            [_paired(x.byte(2 + 4 * group + i), more.field(4 * k + i, 1)) for i in range(4)],
        )
        signs = x.word(74 + 2 * group, 16)
        y.scaled(16 * group, numbers, scale, negative=signs)


def _delta(sign: Vector) -> Vector:
    """An eighth, negative if the bit is set."""
    return (sign.widened(32) << 31 | 0x3E000000).as_floats()


def iq1_s(x: Bytes, y: Target) -> None:
    """``half d``, ``byte entry[32]``, 8 words: 3 bits more of 4 entries, a scale, a sign."""
    d, grid = x.half(0), _grid(x, quants.IQ1_S)
    for group in range(16):
        packed, k = x.word(34 + group // 2 * 2, 16), 2 * (group % 2)
        scale = d * (packed.field(12, 3, 1) + 1).floats()
        first, second = (
            _eight(grid, x.byte(2 + 2 * group + i).widened(16) | packed.field(3 * (k + i), 3, 8))
            for i in range(2)
        )
        y.scaled(16 * group, first.then(second), scale, shift=_delta(packed >> 15))


def iq1_m(x: Bytes, y: Target) -> None:
    """``byte entry[32]``, ``3 bits more, sign [32]``, 4 words: 4 scales, a quarter of ``d``."""
    words = [x.word(48 + 2 * i, 16) for i in range(4)]
    quarters = [word.field(12, 4, 4 * i) for i, word in enumerate(words)]
    d = floats_of_halves(usual_half(quarters[0] | quarters[1] | quarters[2] | quarters[3]))
    grid = _grid(x, quants.IQ1_S)
    for group in range(16):
        scale = d * (words[group // 4].field(group % 4 * 3, 3, 1) + 1).floats()
        more = x.byte(32 + group)
        first, second = (
            _eight(grid, _paired(x.byte(2 * group + k), more.field(4 * k, 3))) for k in range(2)
        )
        # In eighths, so that they are whole.
        numbers = first.then(second) << 3
        is_less = _paired(more.field(3, 1) * 255, more.field(7, 1) * 255).spread()
        numbers = numbers + is_less.chosen(numbers.filled(-1), numbers.filled(1))
        y.scaled(16 * group, numbers, scale * 0.125)


def _numbers(q: Vector) -> Vector:
    return q.looked_up(quants.IQ4_NL.kvalues)


def iq4_nl(x: Bytes, y: Target) -> None:
    """``half d``, ``nibble q[32]``, low nibbles first."""
    d, q = x.half(0), x.bytes(2)
    for half in range(2):
        y.scaled(16 * half, _numbers(q.field(4 * half, 4)), d)


def iq4_xs(x: Bytes, y: Target) -> None:
    """``half d``, 2 upper and 4 lower bits of 8 scales, ``nibble q[256]``."""
    d, high = x.half(0), x.word(2, 16)
    for part in range(8):
        low = x.byte(4 + part // 2).field(part % 2 * 4, 4)
        scale = (low | high.field(2 * part, 2).narrowed(8) << 4) - 32
        scale = d * scale.floats(signed=True)
        q = x.bytes(8 + 16 * part)
        for half in range(2):
            y.scaled(32 * part + 16 * half, _numbers(q.field(4 * half, 4)), scale)
