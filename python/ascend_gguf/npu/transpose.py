"""Codes by rows packed by columns, for operators that want ``[K, N]``."""

from __future__ import annotations

import functools

from ascend_gguf.codegen import (
    I8,
    I16,
    I32,
    I64,
    LANES,
    Kernel,
    Rows,
    Value,
    load,
    local,
    loop,
    minimum,
    rows,
    shuffle,
    store,
    transposed,
)
from ascend_gguf.npu.groups import ROWS_OF_WORD

# Words made at once: 16 of them fill a line of the cache.
_WORDS = 16

# Columns whose codes are read from a line of the cache.
_COLUMNS = 64


def rows_of_line(bits: int) -> int:
    """Rows that fill a line of the cache in the result: the fewest that are worth a call."""
    return _WORDS * ROWS_OF_WORD[bits]


@functools.cache
def transposer(bits: int, planes: int) -> Kernel:
    """Packs rows of codes, a byte each, along the rows; compiled on first use.

    Arguments: rows of the codes ``[rows, cols]``; rows of the result, ``[cols, rows * bits / 8]``
    bytes, or of planes ``[2 * cols, rows / 2]``; ``rows`` in words of :data:`ROWS_OF_WORD`;
    ``cols``, a multiple of 16.

    Args:
        bits: that are kept of a code; two codes of 4 bits in a byte, the first in its low half.
        planes: 0, or of how many columns the high codes come together, and then the low ones.
    """
    halves = 2 if planes else 1

    def transpose(tile: Value, x: Rows, y: Rows, words_: Value, cols: Value) -> None:  # noqa: ARG001
        aside = local(I32, LANES * _WORDS * halves)
        whole = words_ & -_WORDS
        words = functools.partial(_words, bits, planes, x)

        def lines(col: Value) -> list[Value]:
            """Where the words of a column go, or of planes those of its high and low codes."""
            line = col * 2 - (col & planes - 1) if planes else col
            return [y[line + half * planes] for half in range(halves)]

        for first in loop(0, cols, _COLUMNS):
            last = minimum(cols, first + _COLUMNS)
            for word in loop(0, whole, _WORDS):
                for col in loop(first, last, LANES):
                    for i in loop(0, _WORDS):
                        for half, value in enumerate(words(col, word + i)):
                            store(aside + (i + half * _WORDS) * LANES, value)
                    for half, target in enumerate(lines(col)):
                        first_word = aside + half * _WORDS * LANES
                        square = [load(first_word + i * LANES, LANES) for i in range(_WORDS)]
                        for place, value in enumerate(transposed(square)):
                            store(target + (y.stride * place + word * I32.nbytes), value)
            for word in loop(whole, words_):
                for col in loop(first, last, LANES):
                    both = zip(lines(col), words(col, word), strict=True)
                    for target, value in both:
                        for place, lane in enumerate(value.lanes()):
                            store(target + (y.stride * place + word * I32.nbytes), lane)

    name = f"transpose_{bits}_{planes}"
    return Kernel(name, transpose, x=rows(I8), y=rows(I8), words_=I64, cols=I64)


def _words(bits: int, planes: int, x: Rows, col: Value, word: Value) -> list[Value]:
    """A word of each of 16 columns; of planes those of the high codes first."""
    count = ROWS_OF_WORD[bits]
    first = word * count
    codes = [load(x[first + i] + col, LANES) for i in range(count)]
    if bits == 8:
        return [_joined(codes)]
    both = [[(code + 8) >> 4 for code in codes], codes] if planes else [codes]
    return [_joined(_nibbles(half)) for half in both]


def _nibbles(codes: list[Value]) -> list[Value]:
    """The low 4 bits of each two rows in a byte, the first in its low half."""
    kept = [code & 15 for code in codes]
    return [kept[i] | kept[i + 1] << 4 for i in range(0, len(kept), 2)]


def _joined(rows: list[Value]) -> Value:
    """The bytes of four rows in 32 bits, the first in the lowest."""
    pairs = [_zipped(*rows[i : i + 2]).bitcast(I16) for i in (0, 2)]
    return _zipped(*pairs).bitcast(I32)


def _zipped(a: Value, b: Value) -> Value:
    """A lane of ``a`` and one of ``b`` in turn."""
    return shuffle(a, b, [i + side * len(a) for i in range(len(a)) for side in (0, 1)])
