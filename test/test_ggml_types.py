"""The table of block types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import quant_shape_from_byte_shape, quant_shape_to_byte_shape

from ascend_gguf.errors import GGUFError
from ascend_gguf.ggml_types import BLOCK_TYPES, block_type

GOLDEN = Path(__file__).with_name("data") / "golden.npz"

EVERY_TYPE = pytest.mark.parametrize("type_", BLOCK_TYPES.values(), ids=lambda type_: type_.name)
PLAIN = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}


def test_every_type_of_gguf_py_is_there():
    assert set(BLOCK_TYPES) == {int(type_) for type_ in GGML_QUANT_SIZES}


def test_sizes_of_a_well_known_type():
    q4_k = block_type(12)
    assert (q4_k.name, q4_k.block_size, q4_k.type_size) == ("Q4_K", 256, 144)
    assert q4_k.ggml_type is GGMLQuantizationType.Q4_K


@EVERY_TYPE
def test_plain_numbers_are_not_quantized(type_):
    assert type_.is_quantized == (type_.name not in PLAIN)
    if type_.is_quantized:
        assert type_.block_size > 1
    else:
        assert type_.block_size == 1
        assert type_.type_size == type_.dtype.itemsize


@EVERY_TYPE
def test_rows_are_measured_as_gguf_py_does(type_):
    cols = 3 * type_.block_size
    nbytes = type_.row_bytes(cols)
    assert (2, nbytes) == quant_shape_to_byte_shape((2, cols), type_.ggml_type)
    assert (2, type_.row_cols(nbytes)) == quant_shape_from_byte_shape((2, nbytes), type_.ggml_type)


def test_part_of_a_block_is_refused():
    with pytest.raises(GGUFError, match=r"m.gguf: tensor 'w': .*found 257 weights.* of 256"):
        block_type(12).row_bytes(257, file="m.gguf", tensor="w")
    with pytest.raises(GGUFError, match=r"found 145 bytes.* of 144"):
        block_type(12).row_cols(145)


def test_unknown_type_lists_the_known_ones():
    with pytest.raises(GGUFError, match=r"m.gguf: tensor 'w': .*found type 99.*Q4_K=12") as caught:
        block_type(99, file="m.gguf", tensor="w")
    assert all(f"{type_.name}={i}" in caught.value.expected for i, type_ in BLOCK_TYPES.items())


def test_dtypes_are_the_files():
    assert block_type(GGMLQuantizationType.BF16).dtype is torch.bfloat16
    assert block_type(GGMLQuantizationType.F32).dtype is torch.float32


def test_a_row_of_the_table_cannot_be_changed():
    with pytest.raises(AttributeError):
        block_type(12).block_size = 32


def test_sizes_are_ggmls():
    """The golden blocks, 1024 weights a row, were made by ggml's own C code."""
    with np.load(GOLDEN) as golden:
        row_bytes = {name: golden[f"{name}.blocks"].shape[1] for name in map(_stem, golden.files)}
    assert len(row_bytes) == 27
    types = {type_.name: type_ for type_ in BLOCK_TYPES.values()}
    assert row_bytes == {name: types[name].row_bytes(1024) for name in row_bytes}


def _stem(name: str) -> str:
    return name.rsplit(".", 1)[0]
