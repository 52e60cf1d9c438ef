"""Numbers, texts and arrays that a file does not expect, and changes of those that it has."""

from __future__ import annotations

import math
import random

from gguf import GGUFValueType as Kind

from fuzz.container import NUMBERS, Array
from fuzz.seeds import KNOWN_KEYS

WHOLE = (0, 1, 2, 3, 7, 64, 127, 255, 256, 1000, 4095, 65535, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
HUGE = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
NEGATIVE = (-1, -2, -128, -(2**31), -(2**63))
_FLOATS = (0.0, -0.0, 0.5, 1.0, -1.0, 1e-45, 1e-30, 1e10, 1e38, 1e300)
_FLOATS += (math.inf, -math.inf, math.nan)
_MOST_REPEATED = 1 << 16  # bytes of a text that is made longer, perhaps not for the first time
_LENGTHS = (0, 1, 2, 3, 15, 64, 255, 300, 1000, 4000)

_TEXTS = (
    b"",
    b" ",
    b"\0",
    b"\x1b[31mred\x1b]0;t\x07",
    b"line\nline\r\n",
    b"\xff\xfe\x80",
    b"\xed\xa0\x80",  # a lone surrogate
    b"\xf4\x90\x80\x80",  # beyond Unicode
    "\u202e\u0301\u200d\ufeff\ufdd0\U0010ffff".encode(),
    "\u2581".encode(),
    b"<0x00>",
    b"<0xZZ>",
    b"[EMPTY_3]",
    b"(((((((((((((((((((((a+)+)+)+)+",
    b"[^\\",
    b"\\p{L}*",
    b"%s%n{0}{{",
    b"../../etc/passwd",
    b"a" * 5000,
    b"a " * 3000,
    b" " * 5000,
    b"\n" * 5000,
    b"(" * 5000,
    b"7" * 5000,
    "\u00e9".encode() * 3000,
    b"true",
    b"1e999",
    b"-1",
    b"nan",
)
TEMPLATES = (
    b"{{",
    b"{% for %}",
    b"{% if messages %}",
    b"{{ messages }}",
    b"{{ raise_exception('no') }}",
    b"{{ 1 / 0 }}",
    b"{{ messages[99].content }}",
    b"{{ undefined.attribute }}",
    b"{{ ''.__class__.__mro__ }}",
    b"{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    b"{% include 'x' %}",
    b"{% extends 'x' %}",
    b"{{ [messages] | tojson }}",
    b"{% set x = namespace(a=1) %}{{ x }}" * 50,
    b"{{ (" * 2000 + b"1" + b") }}" * 2000,
    b"{% if a %}" * 300 + b"{% endif %}" * 300,
)


def number(source: random.Random) -> object:
    pool = source.choice((WHOLE, WHOLE, HUGE, NEGATIVE, _FLOATS))
    return source.choice(pool)


def text(source: random.Random) -> bytes:
    roll = source.random()
    if roll < 0.2:
        return source.randbytes(source.choice(_LENGTHS[:7]))
    if roll < 0.35:
        return source.choice(TEMPLATES)
    if roll < 0.4:
        return source.choice(KNOWN_KEYS).encode()
    return source.choice(_TEXTS)


def value(source: random.Random, kind: int | None = None) -> tuple[int, object]:
    """A type and a value of it."""
    roll = source.random()
    if kind is None:
        kind = source.choice((*NUMBERS, Kind.STRING, Kind.ARRAY))
    if kind == Kind.STRING:
        return kind, text(source)
    if kind == Kind.ARRAY:
        element, _ = value(source, source.choice((*NUMBERS, Kind.STRING)))
        length = source.choice(_LENGTHS[: 6 if roll < 0.8 else 10])
        if source.random() < 0.3:
            items = (value(source, element)[1],) * length
        else:
            items = tuple(value(source, element)[1] for _ in range(length))
        return kind, Array(element, items)
    return kind, number(source)


def changed_text(old: bytes, source: random.Random) -> bytes:
    place = source.randint(0, len(old))
    roll = source.random()
    if roll < 0.3:
        return text(source)
    if roll < 0.5:
        return old[:place] + text(source) + old[place:]
    if roll < 0.7:
        return old[:place]
    if roll < 0.85:
        return old[:place] + old[place + source.randint(1, 8) :]
    return old[:_MOST_REPEATED] * source.choice((2, 3, 50))


def changed_array(array: Array, source: random.Random) -> Array:
    items, count = list(array.items), len(array.items)
    roll = source.random()
    if roll < 0.35 and items:  # some elements
        for _ in range(source.choice((1, 1, 2, 10, count))):
            place = source.randrange(count)
            old = items[place]
            if isinstance(old, bytes):
                items[place] = changed_text(old, source)
            else:
                items[place] = number(source)
    elif roll < 0.5 and items:  # some elements take others' values
        for _ in range(source.choice((1, 1, 3, 30))):
            items[source.randrange(count)] = items[source.randrange(count)]
    elif roll < 0.6:
        items = items[: source.randint(0, count)]
    elif roll < 0.7:
        items = items + items[: source.choice((1, 2, count))]
    elif roll < 0.75:
        items = sorted(items, key=str) if source.random() < 0.5 else items[::-1]
    elif roll < 0.85:  # another element type, the same numbers
        element = source.choice((*NUMBERS, Kind.STRING))
        return _as_type(array, element, source)
    elif roll < 0.9:
        return array._replace(count=source.choice((*WHOLE, *HUGE)))
    elif roll < 0.95:
        return array._replace(element=source.choice((9, 13, 99, 2**32 - 1)))
    elif items:
        extra = _many(items, source)
        items = items + extra
    return array._replace(items=tuple(items))


def _as_type(array: Array, element: int, source: random.Random) -> Array:
    if element == Kind.STRING:
        items = tuple(i if isinstance(i, bytes) else str(i).encode() for i in array.items)
    else:
        items = tuple(source.choice(WHOLE) if isinstance(i, bytes) else i for i in array.items)
    return Array(element, items)


def _many(items: list, source: random.Random) -> list:
    """Thousands of elements that are all different, or all alike."""
    count = source.choice((1000, 5000))
    if not isinstance(items[0], bytes):
        return [source.choice(items)] * count
    start = source.choice((b"a", b"<|", b"\xc4\xa0", b""))
    if source.random() < 0.3:
        return [start * (i % 300 + 1) for i in range(count // 5)]
    return [start + str(i).encode() for i in range(count)]
