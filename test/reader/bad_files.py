"""Makes GGUF files: a good one, and many that are wrong in one way each."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from rewrite import finish

ALIGNMENT = 32

# Value type -> two values that show sign, width and byte order.
NUMBERS = {
    GGUFValueType.UINT8: [7, 255],
    GGUFValueType.INT8: [-7, 127],
    GGUFValueType.UINT16: [0x1234, 65535],
    GGUFValueType.INT16: [-0x1234, 32767],
    GGUFValueType.UINT32: [0x12345678, 2**32 - 1],
    GGUFValueType.INT32: [-0x12345678, 2**31 - 1],
    GGUFValueType.UINT64: [0x123456789ABCDEF0, 2**64 - 1],
    GGUFValueType.INT64: [-0x123456789ABCDEF0, 2**63 - 1],
    GGUFValueType.FLOAT32: [0.5, -1e30],
    GGUFValueType.FLOAT64: [0.1, -1e300],
    GGUFValueType.BOOL: [True, False],
}
STRINGS = ["Ġthe", "", "<0x0A>", "日本語", "naïve"]


def good_writer(path: Path, **options: object) -> gguf.GGUFWriter:
    """A writer holding every metadata type, and tensors of numbers and blocks, of rank 1 to 4."""
    writer = gguf.GGUFWriter(path, "qwen3", **options)
    writer.add_block_count(2)
    writer.add_custom_alignment(ALIGNMENT)
    for value_type, values in NUMBERS.items():
        name = value_type.name.lower()
        writer.add_key_value(f"test.{name}", values[0], value_type)
        writer.add_key_value(f"test.{name}s", values, GGUFValueType.ARRAY, sub_type=value_type)
    writer.add_string("test.string", "naïve 日本語")
    writer.add_array("test.strings", STRINGS)

    random = np.random.default_rng(0)
    floats = random.standard_normal((3, 5)).astype(np.float32)
    writer.add_tensor("a.f32", floats)
    writer.add_tensor("b.f32_1d", floats[0])
    writer.add_tensor("c.f16", floats.astype(np.float16))
    writer.add_tensor("d.bf16", _bytes(random, 3, 2 * 5), raw_dtype=GGMLQuantizationType.BF16)
    writer.add_tensor("e.f64", floats.astype(np.float64))
    for bits in (8, 16, 32, 64):
        writer.add_tensor(f"f.i{bits}", random.integers(-99, 99, (2, 3), f"int{bits}"))
    writer.add_tensor("g.q8_0", _bytes(random, 4, 2 * 34), raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("h.q4_k", _bytes(random, 2, 3, 144), raw_dtype=GGMLQuantizationType.Q4_K)
    writer.add_tensor("i.q6_k", _bytes(random, 2, 1, 2, 420), raw_dtype=GGMLQuantizationType.Q6_K)
    return writer


def good_file(path: Path) -> Path:
    """Write :func:`good_writer`'s file to ``path``."""
    finish(good_writer(path))
    return path


def _bytes(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.integers(0, 256, shape, np.uint8)


@dataclass(frozen=True)
class BadFile:
    """How to spoil the good file, and what the error must say."""

    spoil: Callable[[bytes], bytes]
    says: tuple[str, ...]


def put(data: bytes, offset: int, layout: str, *values: int) -> bytes:
    """``data`` with the bytes at ``offset`` overwritten."""
    new = struct.pack("<" + layout, *values)
    return data[:offset] + new + data[offset + len(new) :]


def after(data: bytes, name: str) -> int:
    """The offset behind a key's or tensor's name, length and all."""
    written = struct.pack("<Q", len(name)) + name.encode()
    assert data.count(written) == 1, name
    return data.index(written) + len(written)


def _at(name: str, skip: int, layout: str, *values: int) -> Callable[[bytes], bytes]:
    return lambda data: put(data, after(data, name) + skip, layout, *values)


def _rename(old: str, new: bytes) -> Callable[[bytes], bytes]:
    def spoil(data: bytes) -> bytes:
        assert len(new) == len(old)
        end = after(data, old)
        return data[: end - len(old)] + new + data[end:]

    return spoil


# A row of the tensor table after its name: dimensions (uint32), each size (uint64, innermost
# first), type (uint32), offset (uint64). A pair of the metadata after its key: type (uint32),
# value; an array's value: type (uint32), length (uint64), elements.
_DIMS, _SIZES = 0, 4
_TYPE_2D, _OFFSET_2D = 20, 24
_VALUE_TYPE, _VALUE = 0, 4
_ELEMENT_TYPE, _LENGTH, _ELEMENTS = 4, 8, 16

BAD_FILES = {
    "empty": BadFile(lambda data: b"", ("empty",)),
    "lfs": BadFile(
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        ("not a GGUF file", "Git LFS pointer", "git lfs pull"),
    ),
    "html": BadFile(lambda data: b"\n<!DOCTYPE html><html>", ("not a GGUF file", "HTML")),
    "json": BadFile(lambda data: b'{"error": "not found"}', ("not a GGUF file", "JSON")),
    "zeros": BadFile(lambda data: bytes(len(data)), ("not a GGUF file", "never finished")),
    "html_behind_a_mark": BadFile(lambda data: b"\xef\xbb\xbf <html>", ("not a GGUF file", "HTML")),
    "safetensors": BadFile(
        lambda data: b'\x40\0\0\0\0\0\0\0{"__metadata__":{}}' + bytes(64),
        ("not a GGUF file", "safetensors"),
    ),
    "zip": BadFile(lambda data: b"PK\3\4" + data, ("not a GGUF file", "zip", "convert_hf_to_gguf")),
    "pickle": BadFile(lambda data: b"\x80\2}q\0." + data, ("not a GGUF file", "PyTorch")),
    "gzip": BadFile(lambda data: b"\x1f\x8b\x08" + data, ("not a GGUF file", "gzip", "Unpack")),
    "xz": BadFile(lambda data: b"\xfd7zXZ\0" + data, ("not a GGUF file", "xz", "Unpack")),
    "ggla": BadFile(lambda data: b"algg" + data[4:], ("not a GGUF file", "LoRA adapter")),
    "ggml": BadFile(lambda data: b"lmgg" + data[4:], ("not a GGUF file", "older than GGUF")),
    "swapped": BadFile(lambda data: b"FUGG" + data[4:], ("not a GGUF file", "swapped")),
    "ggjt": BadFile(lambda data: b"tjgg" + data[4:], ("not a GGUF file", "older than GGUF")),
    "magic": BadFile(lambda data: b"GGML" + data[4:], ("not a GGUF file", "b'GGML'")),
    "magic_cut": BadFile(lambda data: data[:3], ("not a GGUF file",)),
    "version_1": BadFile(
        lambda data: put(data, 4, "I", 1), ("unsupported GGUF version", "1", "original model")
    ),
    "version_9": BadFile(
        lambda data: put(data, 4, "I", 9), ("unsupported GGUF version", "9", "ascend-gguf")
    ),
    "big_endian": BadFile(
        lambda data: put(data, 4, "I", 3 << 24), ("big-endian", "gguf-convert-endian")
    ),
    "cut_in_header": BadFile(lambda data: data[:20], ("ends inside its header", "20 bytes")),
    "cut_in_metadata": BadFile(
        lambda data: data[: after(data, "test.uint64s") + 24],
        ("test.uint64s", "ends inside its metadata"),
    ),
    "cut_in_tensor_table": BadFile(
        lambda data: data[: after(data, "h.q4_k") + 2],
        ("h.q4_k", "ends inside its tensor table"),
    ),
    "cut_in_data": BadFile(lambda data: data[:-400], ("i.q6_k", "past the end", "download")),
    "tensor_count": BadFile(lambda data: put(data, 8, "Q", 2**63), ("more tensors", str(2**63))),
    "key_count": BadFile(
        lambda data: put(data, 16, "Q", 2**64 - 1), ("more metadata keys", str(2**64 - 1))
    ),
    "key_length": BadFile(lambda data: put(data, 24, "Q", 2**62), ("ends inside its metadata",)),
    "string_length": BadFile(
        _at("test.string", _VALUE, "Q", 2**64 - 1), ("test.string", "ends inside")
    ),
    "array_length": BadFile(
        _at("test.int32s", _LENGTH, "Q", 2**61), ("test.int32s", "ends inside")
    ),
    "string_array_length": BadFile(
        _at("test.strings", _LENGTH, "Q", 2**40), ("test.strings", "ends inside")
    ),
    "array_string_length": BadFile(
        _at("test.strings", _ELEMENTS, "Q", 2**40), ("test.strings", "ends inside")
    ),
    "value_type": BadFile(
        _at("test.uint8", _VALUE_TYPE, "I", 99), ("test.uint8", "value type", "99", "UINT8=0")
    ),
    "element_type": BadFile(
        _at("test.uint8s", _ELEMENT_TYPE, "I", 13), ("test.uint8s", "value type", "13")
    ),
    "nested_array": BadFile(
        _at("test.uint8s", _ELEMENT_TYPE, "I", 9), ("test.uint8s", "arrays of arrays")
    ),
    "key_twice": BadFile(_rename("test.int32", b"test.int64"), ("test.int64", "twice")),
    "key_utf8": BadFile(_rename("test.int32", b"test.\xff\xfe\xfd32"), ("key is not UTF-8",)),
    "alignment_0": BadFile(
        _at("general.alignment", _VALUE, "I", 0), ("general.alignment", "0", "power of two")
    ),
    "alignment_24": BadFile(
        _at("general.alignment", _VALUE, "I", 24), ("general.alignment", "24", "power of two")
    ),
    "alignment_float": BadFile(
        _at("general.alignment", _VALUE_TYPE, "I", GGUFValueType.FLOAT32),
        ("general.alignment", "power of two"),
    ),
    "tensor_name_length": BadFile(
        lambda data: put(data, after(data, "c.f16") - 13, "Q", 2**40), ("inside its tensor table",)
    ),
    "tensor_name_utf8": BadFile(_rename("c.f16", b"c.\xff16"), ("name is not UTF-8",)),
    "tensor_twice": BadFile(_rename("f.i16", b"f.i32"), ("f.i32", "twice")),
    "five_dims": BadFile(_at("g.q8_0", _DIMS, "I", 5), ("g.q8_0", "dimensions", "5")),
    "many_dims": BadFile(_at("g.q8_0", _DIMS, "I", 2**32 - 1), ("g.q8_0", "dimensions")),
    "zero_dim": BadFile(_at("g.q8_0", _SIZES + 8, "Q", 0), ("g.q8_0", "dimension is zero")),
    "huge_dims": BadFile(
        _at("g.q8_0", _SIZES, "QQ", 2**63, 2**63), ("g.q8_0", "past the end of the file")
    ),
    "shape": BadFile(
        _at("i.q6_k", _SIZES + 8, "Q", 3), ("i.q6_k", "past the end", "Q6_K [2, 1, 3, 512]")
    ),
    "block_type": BadFile(
        _at("g.q8_0", _TYPE_2D, "I", 99), ("g.q8_0", "unknown block type", "99", "Q4_K=12")
    ),
    "removed_type": BadFile(_at("g.q8_0", _TYPE_2D, "I", 33), ("g.q8_0", "Q4_0_8_8", "removed")),
    "foreign_type": BadFile(_at("g.q8_0", _TYPE_2D, "I", 139), ("g.q8_0", "IQ4_K of ik_llama.cpp")),
    "partial_block": BadFile(
        _at("g.q8_0", _SIZES, "Q", 65), ("g.q8_0", "whole number of Q8_0 blocks", "65", "32")
    ),
    "unaligned": BadFile(_at("g.q8_0", _OFFSET_2D, "Q", 33), ("g.q8_0", "aligned", "33", "32")),
    "offset": BadFile(_at("g.q8_0", _OFFSET_2D, "Q", 2**40), ("g.q8_0", "past the end")),
    "offset_overflow": BadFile(
        _at("g.q8_0", _OFFSET_2D, "Q", 2**64 - 32), ("g.q8_0", "past the end")
    ),
    "overlap": BadFile(_at("g.q8_0", _OFFSET_2D, "Q", 0), ("overlaps", "g.q8_0", "a.f32")),
}
