"""Ways to spoil a file.  Each takes what it is given and random numbers, and returns a new one."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

from gguf import GGML_QUANT_SIZES
from gguf import GGUFValueType as Kind

from fuzz.container import (
    ALIGNMENT,
    NUMBERS,
    Array,
    Contents,
    Entry,
    Tensor,
    assemble,
    data_size,
)
from fuzz.seeds import KNOWN_KEYS, random_bytes, split

_WHOLE = (0, 1, 2, 3, 7, 64, 127, 255, 256, 1000, 4095, 65535, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
_HUGE = (2**32, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_NEGATIVE = (-1, -2, -128, -(2**31), -(2**63))
_FLOATS = (
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    1e-45,
    1e-30,
    1e10,
    1e38,
    1e300,
    math.inf,
    -math.inf,
    math.nan,
)
_LARGEST = 1 << 22  # bytes that are written for a tensor
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
_TEMPLATES = (
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


# --- keys and values --------------------------------------------------------------------------


def _number(source: random.Random) -> object:
    pool = source.choice((_WHOLE, _WHOLE, _HUGE, _NEGATIVE, _FLOATS))
    return source.choice(pool)


def _text(source: random.Random) -> bytes:
    roll = source.random()
    if roll < 0.2:
        return source.randbytes(source.choice(_LENGTHS[:7]))
    if roll < 0.35:
        return source.choice(_TEMPLATES)
    if roll < 0.4:
        return source.choice(KNOWN_KEYS).encode()
    return source.choice(_TEXTS)


def _value(source: random.Random, kind: int | None = None) -> tuple[int, object]:
    """A type and a value of it."""
    roll = source.random()
    if kind is None:
        kind = source.choice((*NUMBERS, Kind.STRING, Kind.ARRAY))
    if kind == Kind.STRING:
        return kind, _text(source)
    if kind == Kind.ARRAY:
        element, _ = _value(source, source.choice((*NUMBERS, Kind.STRING)))
        length = source.choice(_LENGTHS[: 6 if roll < 0.8 else 10])
        if source.random() < 0.3:
            items = (_value(source, element)[1],) * length
        else:
            items = tuple(_value(source, element)[1] for _ in range(length))
        return kind, Array(element, items)
    return kind, _number(source)


def _changed_text(text: bytes, source: random.Random) -> bytes:
    place = source.randint(0, len(text))
    roll = source.random()
    if roll < 0.3:
        return _text(source)
    if roll < 0.5:
        return text[:place] + _text(source) + text[place:]
    if roll < 0.7:
        return text[:place]
    if roll < 0.85:
        return text[:place] + text[place + source.randint(1, 8) :]
    return text[:_MOST_REPEATED] * source.choice((2, 3, 50))


def _changed_array(array: Array, source: random.Random) -> Array:
    items, count = list(array.items), len(array.items)
    roll = source.random()
    if roll < 0.35 and items:  # some elements
        for _ in range(source.choice((1, 1, 2, 10, count))):
            place = source.randrange(count)
            old = items[place]
            if isinstance(old, bytes):
                items[place] = _changed_text(old, source)
            else:
                items[place] = _number(source)
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
        return array._replace(count=source.choice((*_WHOLE, *_HUGE)))
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
        items = tuple(source.choice(_WHOLE) if isinstance(i, bytes) else i for i in array.items)
    return Array(element, items)


def _many(items: list, source: random.Random) -> list:
    """Thousands of elements that are all different, or all alike."""
    count = source.choice((1000, 5000))
    if not isinstance(items[0], bytes):
        return [source.choice(items)] * count
    start = source.choice((b"a", b"<|", b"\xc4\xa0", b""))
    if source.random() < 0.3:
        return [start * (number % 300 + 1) for number in range(count // 5)]
    return [start + str(number).encode() for number in range(count)]


def change_value(contents: Contents, source: random.Random) -> Contents:
    place = _some_entry(contents, source)
    old = contents.entries[place]
    roll = source.random()
    if roll < 0.2:
        kind, value = _value(source)
    elif isinstance(old.value, Array) and roll < 0.9:
        kind, value = old.kind, _changed_array(old.value, source)
    elif isinstance(old.value, bytes) and roll < 0.9:
        value = (
            source.choice(_TEMPLATES)
            if b"template" in old.key and source.random() < 0.4
            else _changed_text(old.value, source)
        )
        kind = old.kind
    else:
        kind, value = _value(source, None if old.kind not in NUMBERS else old.kind)
    return _with_entry(contents, place, Entry(old.key, kind, value))


def add_known_key(contents: Contents, source: random.Random) -> Contents:
    """A key that gguf knows, below the file's own architecture."""
    key = source.choice(KNOWN_KEYS).replace("{arch}", _architecture(contents))
    key = key.replace("{id}", str(source.choice((0, 1, 10**9)))).encode()
    kind, value = _value(source)
    kept = tuple(e for e in contents.entries if e.key != key)
    place = source.randint(0, len(kept))
    return contents._replace(entries=kept[:place] + (Entry(key, kind, value),) + kept[place:])


def drop_key(contents: Contents, source: random.Random) -> Contents:
    place = _some_entry(contents, source)
    return contents._replace(entries=contents.entries[:place] + contents.entries[place + 1 :])


def repeat_key(contents: Contents, source: random.Random) -> Contents:
    place = _some_entry(contents, source)
    return contents._replace(entries=(*contents.entries, contents.entries[place]))


def rename_key(contents: Contents, source: random.Random) -> Contents:
    place = _some_entry(contents, source)
    old = contents.entries[place]
    if source.random() < 0.5:
        key = source.choice(contents.entries).key
        contents = contents._replace(
            entries=tuple(e for e in contents.entries if e.key != key or e is old)
        )
        place = contents.entries.index(old)
    else:
        key = _changed_text(old.key, source)
    return _with_entry(contents, place, old._replace(key=key))


def swap_values(contents: Contents, source: random.Random) -> Contents:
    entries = list(contents.entries)
    if len(entries) < 2:
        return contents
    a, b = source.sample(range(len(entries)), 2)
    entries[a], entries[b] = (
        entries[b]._replace(key=entries[a].key),
        entries[a]._replace(key=entries[b].key),
    )
    return contents._replace(entries=tuple(entries))


def take_keys(contents: Contents, source: random.Random, others: Sequence[Contents]) -> Contents:
    """Some keys of another file in place of the file's own."""
    other = source.choice(others)
    roll = source.random()
    if roll < 0.3:
        taken = tuple(source.sample(other.entries, min(3, len(other.entries))))
    else:
        prefix = b"tokenizer." if roll < 0.7 else _architecture(other).encode() + b"."
        taken = tuple(e for e in other.entries if e.key.startswith(prefix))
        if roll > 0.85:  # as if they were the file's own
            own = _architecture(contents).encode() + b"."
            taken = tuple(e._replace(key=e.key.replace(prefix, own, 1)) for e in taken)
    keys = {e.key for e in taken}
    return contents._replace(
        entries=tuple(e for e in contents.entries if e.key not in keys) + taken
    )


# --- tensors ----------------------------------------------------------------------------------


def change_shape(contents: Contents, source: random.Random) -> Contents:
    place = _some_tensor(contents, source)
    if place is None:
        return contents
    tensor = contents.tensors[place]
    dims = list(tensor.dims)
    roll = source.random()
    if roll < 0.2:
        source.shuffle(dims)
    elif roll < 0.4:
        dims.insert(source.randint(0, len(dims)), source.choice((0, 1, 1, 2, 2**32, 2**63)))
    elif roll < 0.5:
        dims = dims[:-1]
    elif roll < 0.8 and dims:
        axis = source.randrange(len(dims))
        dims[axis] = source.choice((dims[axis] * 2, dims[axis] // 2, dims[axis] - 1, 32, 256))
    elif dims:
        dims[source.randrange(len(dims))] = source.choice((*_WHOLE, *_HUGE))
    data = tensor.data
    size = data_size(tuple(dims), tensor.kind)
    if source.random() < 0.7 and 0 <= size < _LARGEST:  # as if it were so
        data = random_bytes(size, source)
    return _with_tensor(contents, place, tensor._replace(dims=tuple(dims), data=data))


def change_type(contents: Contents, source: random.Random) -> Contents:
    place = _some_tensor(contents, source)
    if place is None:
        return contents
    tensor = contents.tensors[place]
    kind = int(source.choice(list(GGML_QUANT_SIZES)))
    if source.random() < 0.15:
        kind = source.choice((4, 5, 31, 36, 99, 2**31, 2**32 - 1))
        return _with_tensor(contents, place, tensor._replace(kind=kind))
    data = random_bytes(min(data_size(tensor.dims, kind), _LARGEST), source)
    return _with_tensor(contents, place, tensor._replace(kind=kind, data=data))


def rename_tensor(contents: Contents, source: random.Random) -> Contents:
    place = _some_tensor(contents, source)
    if place is None:
        return contents
    name = contents.tensors[place].name
    roll = source.random()
    if roll < 0.3:
        new = source.choice(contents.tensors).name
    elif roll < 0.5:
        new = _changed_text(name, source)
    elif roll < 0.7:
        new = name.replace(b"blk.0.", b"blk.%d." % source.choice((1, 5, 99, 10**6, 10**400)))
    elif roll < 0.85:
        new = name.replace(b".weight", source.choice((b".bias", b".scale", b"", b".input_scale")))
    else:
        new = source.choice(
            (
                b"rope_freqs.weight",
                b"rope_factors_long.weight",
                b"rope_factors_short.weight",
                b"output.weight",
                b"token_embd.weight",
                b"cls.output.weight",
                b"v.patch_embd.weight",
                b"blk.0.ffn_gate_up_exps.weight",
                b"blk.0.attn_qkv.weight",
            )
        )
    return _with_tensor(contents, place, contents.tensors[place]._replace(name=new))


def drop_tensor(contents: Contents, source: random.Random) -> Contents:
    place = _some_tensor(contents, source)
    if place is None:
        return contents
    return contents._replace(tensors=contents.tensors[:place] + contents.tensors[place + 1 :])


def repeat_tensor(contents: Contents, source: random.Random) -> Contents:
    place = _some_tensor(contents, source)
    if place is None:
        return contents
    again = contents.tensors[place]
    if source.random() < 0.5:
        again = again._replace(name=again.name.replace(b"blk.0.", b"blk.1."))
    return contents._replace(tensors=(*contents.tensors, again))


def move_tensor(contents: Contents, source: random.Random) -> Contents:
    place = _some_tensor(contents, source)
    if place is None:
        return contents
    offset = source.choice((0, 1, ALIGNMENT, 7 * ALIGNMENT, 4096, 2**40, 2**63, 2**64 - ALIGNMENT))
    return _with_tensor(contents, place, contents.tensors[place]._replace(offset=offset))


def spoil_data(contents: Contents, source: random.Random) -> Contents:
    """Numbers that are infinite, or no numbers, in a tensor."""
    place = _some_tensor(contents, source)
    if place is None:
        return contents
    tensor = contents.tensors[place]
    fill = source.choice((b"\xff", b"\0", b"\x7f\x80", b"\x00\x7c", b"\x00\x00\xc0\x7f"))
    data = (fill * (len(tensor.data) // len(fill) + 1))[: len(tensor.data)]
    return _with_tensor(contents, place, tensor._replace(data=data))


def change_header(contents: Contents, source: random.Random) -> Contents:
    roll = source.random()
    if roll < 0.2:
        return contents._replace(version=source.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1)))
    count = source.choice((*_WHOLE, *_HUGE, len(contents.entries) - 1, len(contents.tensors) - 1))
    counts = (count, None) if roll < 0.6 else (None, count)
    return contents._replace(counts=counts)


#: What is done to the parts of a file, with how often.
_OF_PARTS: tuple[tuple[Callable[..., Contents], int], ...] = (
    (change_value, 40),
    (add_known_key, 14),
    (drop_key, 6),
    (repeat_key, 1),
    (rename_key, 4),
    (swap_values, 4),
    (take_keys, 6),
    (change_shape, 8),
    (change_type, 6),
    (rename_tensor, 5),
    (drop_tensor, 2),
    (repeat_tensor, 2),
    (move_tensor, 2),
    (spoil_data, 2),
    (change_header, 1),
)


# --- bytes ------------------------------------------------------------------------------------


def spoil_bytes(data: bytes, source: random.Random, others: Sequence[bytes]) -> bytes:
    """A few bits, fields or stretches of a file changed, mostly of what comes before its data."""
    spoiled = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        reach = len(spoiled) if source.random() < 0.2 else min(len(spoiled), 24000)
        if not reach:
            break
        place = source.randrange(min(reach, 512) if source.random() < 0.2 else reach)
        roll = source.random()
        if roll < 0.3:
            spoiled[place] ^= 1 << source.randrange(8)
        elif roll < 0.4:
            spoiled[place] = source.randrange(256)
        elif roll < 0.6:
            size = source.choice((4, 8))
            value = source.choice((*_WHOLE, *_HUGE, *_NEGATIVE)) % (1 << 8 * size)
            spoiled[place : place + size] = value.to_bytes(size, "little")
        elif roll < 0.7:
            del spoiled[place : place + source.choice((1, 2, 4, 8, 100))]
        elif roll < 0.8:
            spoiled[place:place] = source.randbytes(source.choice((1, 2, 4, 8, 100)))
        elif roll < 0.9:
            start = source.randrange(reach)
            part = spoiled[start : start + source.choice((8, 64, 1000))]
            spoiled[place : place + len(part)] = part
        elif roll < 0.96:
            other = source.choice(others)
            spoiled[place:] = other[min(place, len(other)) :]
        else:
            del spoiled[place:]
    return bytes(spoiled)


# --- a whole case -----------------------------------------------------------------------------


def mutated(
    source: random.Random, seeds: Sequence[Contents], assembled: Sequence[bytes]
) -> list[bytes]:
    """The files of a spoiled model: one, or two of a split one.

    Args:
        seeds, assembled: what to start from, and the same as bytes.
    """
    number = source.randrange(len(seeds))
    contents = seeds[number]
    by_bytes = source.random() < 0.3
    if not by_bytes or source.random() < 0.2:
        functions, weights = zip(*_OF_PARTS, strict=True)
        for change in source.choices(functions, weights, k=source.choice((1, 1, 1, 2, 3, 6))):
            more = (seeds,) if change is take_keys else ()
            contents = change(contents, source, *more)
    parts = [contents]
    if source.random() < 0.03 and len(contents.tensors) > 1:
        parts = split(contents)
        if source.random() < 0.5:
            which = source.randrange(2)
            parts[which] = change_value(parts[which], source)
    whole = [assembled[number] if part is seeds[number] else assemble(part) for part in parts]
    if by_bytes:
        which = source.randrange(len(whole))
        whole[which] = spoil_bytes(whole[which], source, assembled)
    return whole


def _some_entry(contents: Contents, source: random.Random) -> int:
    return source.randrange(len(contents.entries)) if contents.entries else 0


def _with_entry(contents: Contents, place: int, new: Entry) -> Contents:
    entries = contents.entries
    return contents._replace(entries=(*entries[:place], new, *entries[place + 1 :]))


def _some_tensor(contents: Contents, source: random.Random) -> int | None:
    return source.randrange(len(contents.tensors)) if contents.tensors else None


def _with_tensor(contents: Contents, place: int, new: Tensor) -> Contents:
    tensors = contents.tensors
    return contents._replace(tensors=(*tensors[:place], new, *tensors[place + 1 :]))


def _architecture(contents: Contents) -> str:
    for item in contents.entries:
        if item.key == b"general.architecture" and isinstance(item.value, bytes):
            return item.value.decode("utf-8", "replace")
    return "llama"
