"""Ways to spoil a file.  Each takes what it is given and random numbers, and returns a new one."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from gguf import GGML_QUANT_SIZES

from fuzz import values
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

# --- keys and values --------------------------------------------------------------------------


def change_value(contents: Contents, source: random.Random) -> Contents:
    place = _some_entry(contents, source)
    old = contents.entries[place]
    roll = source.random()
    if roll < 0.2:
        kind, value = values.value(source)
    elif isinstance(old.value, Array) and roll < 0.9:
        kind, value = old.kind, values.changed_array(old.value, source)
    elif isinstance(old.value, bytes) and roll < 0.9:
        value = (
            source.choice(values.TEMPLATES)
            if b"template" in old.key and source.random() < 0.4
            else values.changed_text(old.value, source)
        )
        kind = old.kind
    else:
        kind, value = values.value(source, None if old.kind not in NUMBERS else old.kind)
    return _with_entry(contents, place, Entry(old.key, kind, value))


def add_known_key(contents: Contents, source: random.Random) -> Contents:
    """A key that gguf knows, below the file's own architecture."""
    key = source.choice(KNOWN_KEYS).replace("{arch}", _architecture(contents))
    key = key.replace("{id}", str(source.choice((0, 1, 10**9)))).encode()
    kind, value = values.value(source)
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
        key = values.changed_text(old.key, source)
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

_LARGEST = 1 << 22  # bytes that are written for a tensor


def _of_a_tensor(change: Callable[..., Contents]) -> Callable[..., Contents]:
    """A change of a random tensor's; without tensors nothing changes."""

    def changed(contents: Contents, source: random.Random) -> Contents:
        count = len(contents.tensors)
        return change(contents, source, source.randrange(count)) if count else contents

    return changed


@_of_a_tensor
def change_shape(contents: Contents, source: random.Random, place: int) -> Contents:
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
        dims[source.randrange(len(dims))] = source.choice((*values.WHOLE, *values.HUGE))
    data = tensor.data
    size = data_size(tuple(dims), tensor.kind)
    if source.random() < 0.7 and 0 <= size < _LARGEST:  # as if it were so
        data = random_bytes(size, source)
    return _with_tensor(contents, place, tensor._replace(dims=tuple(dims), data=data))


@_of_a_tensor
def change_type(contents: Contents, source: random.Random, place: int) -> Contents:
    tensor = contents.tensors[place]
    kind = int(source.choice(list(GGML_QUANT_SIZES)))
    if source.random() < 0.15:
        kind = source.choice((4, 5, 31, 36, 99, 2**31, 2**32 - 1))
        return _with_tensor(contents, place, tensor._replace(kind=kind))
    data = random_bytes(min(data_size(tensor.dims, kind), _LARGEST), source)
    return _with_tensor(contents, place, tensor._replace(kind=kind, data=data))


@_of_a_tensor
def rename_tensor(contents: Contents, source: random.Random, place: int) -> Contents:
    name = contents.tensors[place].name
    roll = source.random()
    if roll < 0.3:
        new = source.choice(contents.tensors).name
    elif roll < 0.5:
        new = values.changed_text(name, source)
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


@_of_a_tensor
def drop_tensor(contents: Contents, source: random.Random, place: int) -> Contents:
    return contents._replace(tensors=contents.tensors[:place] + contents.tensors[place + 1 :])


@_of_a_tensor
def repeat_tensor(contents: Contents, source: random.Random, place: int) -> Contents:
    again = contents.tensors[place]
    if source.random() < 0.5:
        again = again._replace(name=again.name.replace(b"blk.0.", b"blk.1."))
    return contents._replace(tensors=(*contents.tensors, again))


@_of_a_tensor
def move_tensor(contents: Contents, source: random.Random, place: int) -> Contents:
    offset = source.choice((0, 1, ALIGNMENT, 7 * ALIGNMENT, 4096, 2**40, 2**63, 2**64 - ALIGNMENT))
    return _with_tensor(contents, place, contents.tensors[place]._replace(offset=offset))


@_of_a_tensor
def spoil_data(contents: Contents, source: random.Random, place: int) -> Contents:
    """Numbers that are infinite, or no numbers, in a tensor."""
    tensor = contents.tensors[place]
    fill = source.choice((b"\xff", b"\0", b"\x7f\x80", b"\x00\x7c", b"\x00\x00\xc0\x7f"))
    data = (fill * (len(tensor.data) // len(fill) + 1))[: len(tensor.data)]
    return _with_tensor(contents, place, tensor._replace(data=data))


def change_header(contents: Contents, source: random.Random) -> Contents:
    roll = source.random()
    if roll < 0.2:
        return contents._replace(version=source.choice((0, 1, 2, 4, 3 << 24, 2**32 - 1)))
    count = source.choice(
        (*values.WHOLE, *values.HUGE, len(contents.entries) - 1, len(contents.tensors) - 1)
    )
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
            value = source.choice((*values.WHOLE, *values.HUGE, *values.NEGATIVE)) % (1 << 8 * size)
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


def _with_tensor(contents: Contents, place: int, new: Tensor) -> Contents:
    tensors = contents.tensors
    return contents._replace(tensors=(*tensors[:place], new, *tensors[place + 1 :]))


def _architecture(contents: Contents) -> str:
    for item in contents.entries:
        if item.key == b"general.architecture" and isinstance(item.value, bytes):
            return item.value.decode("utf-8", "replace")
    return "llama"
