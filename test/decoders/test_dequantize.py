"""Decoding blocks: bit for bit what ggml's C code makes of them."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

import ascend_gguf
from ascend_gguf import GGUFError, dequantize
from ascend_gguf.decoders import dequantize as decoding
from random_model import ALL_TYPES

with np.load(Path(__file__).parents[1] / "data" / "golden.npz") as _file:
    GOLDEN = dict(_file)

EVERY_TYPE = pytest.mark.parametrize("name", ALL_TYPES)


def golden(name: str) -> tuple[torch.Tensor, GGMLQuantizationType, np.ndarray]:
    """Blocks of 16 rows of 1024 weights, their type, and their values by ggml's C code."""
    blocks = torch.from_numpy(GOLDEN[f"{name}.blocks"])
    return blocks, GGMLQuantizationType[name], GOLDEN[f"{name}.values"]


def to_bfloat16_bits(values: np.ndarray) -> np.ndarray:
    """The bits of ``values``, no NaN among them, rounded to the nearest bfloat16, ties to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def to_float16_bits(values: np.ndarray) -> np.ndarray:
    """As :func:`to_bfloat16_bits`, by numpy."""
    with np.errstate(over="ignore"):
        return values.astype(np.float16).view(np.uint16)


def bits(tensor: torch.Tensor) -> np.ndarray:
    """The bits of numbers, which unlike numbers can be compared where they are NaN."""
    integer = {4: torch.int32, 2: torch.int16}[tensor.itemsize]
    unsigned = {4: np.uint32, 2: np.uint16}[tensor.itemsize]
    return tensor.contiguous().view(integer).numpy().view(unsigned)


ROUNDINGS: dict[torch.dtype, Callable[[np.ndarray], np.ndarray]] = {
    torch.float32: lambda values: values.view(np.uint32),
    torch.float16: to_float16_bits,
    torch.bfloat16: to_bfloat16_bits,
}
EVERY_DTYPE = pytest.mark.parametrize("dtype", ROUNDINGS, ids=str)


def test_all_types_are_there():
    assert len(ALL_TYPES) == 27


@EVERY_TYPE
@EVERY_DTYPE
def test_bits_are_those_of_ggml(name, dtype):
    blocks, ggml_type, values = golden(name)
    decoded = dequantize(blocks, ggml_type, dtype)
    assert decoded.dtype is dtype
    np.testing.assert_array_equal(bits(decoded), ROUNDINGS[dtype](values))


def test_not_a_number_stays_one():
    numbers = np.array([np.nan, -np.nan, 1.0, np.nan], np.float32)
    blocks = numbers.view(np.uint8)
    assert np.array_equal(bits(dequantize(blocks, 0)), numbers.view(np.uint32))
    for dtype in (torch.float16, torch.bfloat16):
        assert dequantize(blocks, 0, dtype).isnan().tolist() == [True, True, False, True]


OUTPUTS = {
    "contiguous": lambda dtype: torch.empty(16, 1024, dtype=dtype),
    "wider rows": lambda dtype: torch.empty(16, 1500, dtype=dtype)[:, 200:1224],
    "every other row": lambda dtype: torch.empty(32, 1024, dtype=dtype)[1::2],
    "transposed": lambda dtype: torch.empty(1024, 16, dtype=dtype).t(),
    "offset": lambda dtype: torch.empty(17, 1024, dtype=dtype)[1:],
}


@pytest.mark.parametrize("make", OUTPUTS.values(), ids=OUTPUTS)
@pytest.mark.parametrize("dtype", [*ROUNDINGS, torch.float64], ids=str)
def test_out_is_written_in_place(make, dtype):
    blocks, ggml_type, values = golden("Q4_K")
    out = make(dtype).fill_(torch.nan)
    assert dequantize(blocks, ggml_type, out=out) is out
    assert torch.equal(out, torch.from_numpy(values).to(dtype))


def test_nothing_but_out_is_written():
    blocks, ggml_type, values = golden("Q6_K")
    around = torch.full((18, 1500), 7.0)
    dequantize(blocks, ggml_type, out=around[1:17, 200:1224])
    expected = torch.full((18, 1500), 7.0)
    expected[1:17, 200:1224] = torch.from_numpy(values)
    assert torch.equal(around, expected)


@EVERY_DTYPE
def test_out_decides_the_dtype(dtype):
    blocks, ggml_type, values = golden("Q5_1")
    out = torch.empty(16, 1024, dtype=dtype)
    dequantize(blocks, ggml_type, torch.bfloat16, out=out)
    np.testing.assert_array_equal(bits(out), ROUNDINGS[dtype](values))


@EVERY_TYPE
@pytest.mark.parametrize("shape", [(4, 4), (2, 2, 4), (16, 1), ()], ids=str)
def test_any_number_of_dimensions(name, shape):
    blocks, ggml_type, values = golden(name)
    if not shape:
        blocks, values = blocks[5], values[5]
    decoded = dequantize(blocks.reshape(*shape, -1), ggml_type)
    expected = values.reshape(*shape, -1)
    assert tuple(decoded.shape) == expected.shape
    np.testing.assert_array_equal(bits(decoded), expected.view(np.uint32))

    out = torch.empty(*expected.shape[:-1], 2 * expected.shape[-1])[..., : expected.shape[-1]]
    dequantize(blocks.reshape(*shape, -1), ggml_type, out=out)
    np.testing.assert_array_equal(bits(out), expected.view(np.uint32))


@EVERY_TYPE
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0)], ids=str)
def test_no_rows(name, shape):
    blocks, ggml_type, _ = golden(name)
    empty = blocks[:1].expand(0, -1).reshape(*shape, blocks.shape[1])
    assert dequantize(empty, ggml_type).shape == (*shape, 1024)
    out = torch.empty(*shape, 1024, dtype=torch.bfloat16)
    assert dequantize(empty, ggml_type, out=out) is out


def test_no_columns():
    assert dequantize(torch.empty(3, 0, dtype=torch.uint8), 12).shape == (3, 0)


INPUTS = {
    "numpy": lambda blocks: blocks.numpy(),
    "numpy, strided": lambda blocks: np.repeat(blocks.numpy(), 2, axis=0)[::2],
    "torch": lambda blocks: blocks,
    "wider rows": lambda blocks: torch.nn.functional.pad(blocks, (7, 9))[:, 7:-9],
    "transposed": lambda blocks: blocks.t().contiguous().t(),
    "every other byte": lambda blocks: blocks.repeat_interleave(2, dim=1)[:, ::2],
    "unaligned": lambda blocks: torch.nn.functional.pad(blocks.flatten(), (1, 0))[1:].view(16, -1),
}


@EVERY_TYPE
@pytest.mark.parametrize("convert", INPUTS.values(), ids=INPUTS)
def test_any_strides_of_blocks(name, convert):
    blocks, ggml_type, values = golden(name)
    np.testing.assert_array_equal(
        bits(dequantize(convert(blocks), ggml_type)), values.view(np.uint32)
    )


def test_blocks_are_left_alone():
    blocks, ggml_type, _ = golden("F32")
    before = blocks.clone()
    decoded = dequantize(blocks, ggml_type)
    decoded.zero_()
    assert torch.equal(blocks, before)


def test_rows_expanded_from_one():
    blocks, ggml_type, values = golden("Q8_0")
    decoded = dequantize(blocks[4].expand(3, -1), ggml_type)
    assert np.array_equal(decoded.numpy(), np.stack([values[4]] * 3))


def test_nothing_but_memory_and_one_core_is_needed(monkeypatch):
    """No folder can be written to, so nothing is looked for or kept on the disk."""
    code = (
        "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
        "import torch, ascend_gguf\n"
        "blocks = torch.zeros(4096, 144, dtype=torch.uint8)\n"
        "assert ascend_gguf.dequantize(blocks, 12, torch.bfloat16).sum() == 0"
    )
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, "/proc/no-such-folder")
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, cwd="/proc")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_unknown_type():
    with pytest.raises(GGUFError, match=r"unknown block type .*found type 99.*Q4_K=12"):
        dequantize(torch.zeros(1, 144, dtype=torch.uint8), 99)


@pytest.mark.parametrize("name", ["F64", "I8", "I16", "I32", "I64"])
def test_types_that_no_weight_has(name):
    ggml_type = GGMLQuantizationType[name]
    row = decoding.block_type(ggml_type).row_bytes(256)
    with pytest.raises(GGUFError, match=rf"no decoder.*found {name}"):
        dequantize(torch.zeros(1, row, dtype=torch.uint8), ggml_type)


@EVERY_TYPE
def test_part_of_a_block(name):
    blocks, ggml_type, _ = golden(name)
    with pytest.raises(GGUFError, match=rf"whole number of {name} blocks.*{blocks.shape[1] - 1}"):
        dequantize(blocks[:, :-1], ggml_type)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.uint8], ids=str)
def test_dtype_of_the_result_must_be_a_models(dtype):
    with pytest.raises(ValueError, match=rf"float32.*float16.*bfloat16.*got {dtype}"):
        dequantize(torch.zeros(1, 144, dtype=torch.uint8), 12, dtype)


@pytest.mark.parametrize(
    "blocks",
    [torch.zeros(144), torch.zeros(144, dtype=torch.int8), torch.zeros((), dtype=torch.uint8)],
    ids=["float32", "int8", "no dimension"],
)
def test_blocks_must_be_bytes(blocks):
    with pytest.raises(ValueError, match="uint8"):
        dequantize(blocks, 12)


@pytest.mark.parametrize("shape", [(2, 255), (1, 256), (512,), (256, 2), (1, 2, 256)], ids=str)
def test_out_must_fit(shape):
    with pytest.raises(ValueError, match=r"out has shape .*\(2, 256\)"):
        dequantize(torch.zeros(2, 144, dtype=torch.uint8), 12, out=torch.empty(shape))


def test_public_names_are_what_they_say_after_any_import():
    """A module named like a public function would take its place in the package."""
    for module in pkgutil.walk_packages(ascend_gguf.__path__, "ascend_gguf."):
        if not module.name.startswith("ascend_gguf.srt"):
            importlib.import_module(module.name)
    from ascend_gguf import dequantize as again

    assert callable(again)
    assert again is decoding.dequantize
    for name in ascend_gguf.__all__:
        assert getattr(ascend_gguf, name).__name__ == name
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ascend_gguf.nonsense
