"""Weights in their layouts are the weights of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor
from ascend_gguf.ggml_types import BLOCK_TYPES, block_type
from ascend_gguf.npu import column_groups, conversion
from ascend_gguf.npu.choice import choose
from ascend_gguf.npu.experts import GroupedInt4, GroupedNibblePlanes, GroupedWidePlanes
from ascend_gguf.npu.int4 import Int4, Int4Rows
from ascend_gguf.npu.int8 import Int8, Int8Rows, RequantizedInt8
from ascend_gguf.npu.nibble_planes import NibblePlanes, PlanesRows, WidePlanes
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated
from random_model import Spec, write_blocks

with np.load(Path(__file__).parents[1] / "data" / "golden.npz") as _file:
    GOLDEN = {name: _file[name] for name in _file.files}

QUANTIZED = [
    kind for kind in BLOCK_TYPES.values() if kind.codes and f"{kind.name}.blocks" in GOLDEN
]
INT4 = {"Q4_0", "Q4_1", "Q4_K", "IQ3_S", "IQ1_S", "Q1_0", "TQ1_0", "TQ2_0"}
IN_GROUPS_OF_16 = {"Q2_K", "Q3_K", "Q6_K", "IQ1_M", "IQ2_XS", "IQ2_S", "NVFP4"}
GROUPED = (GroupedInt4, GroupedWidePlanes, GroupedNibblePlanes)
EXACT = (Int4, Int4Rows, Int8, Int8Rows, NibblePlanes, PlanesRows, *GROUPED)
LAYOUTS = [*EXACT, RequantizedInt8]
EVERY_TYPE = pytest.mark.parametrize("kind", QUANTIZED, ids=lambda kind: kind.name)

#: Added by ``RequantizedInt8``, root mean square, of that of the weights.
NEAR_ERROR = {
    "Q3_K": 0.0036,
    "Q6_K": 0.0047,
    "NVFP4": 0.0043,
    "IQ1_M": 0.006,
    "IQ2_XS": 0.0075,
    "IQ2_S": 0.0055,
}


def golden(kind, cols: int = 256) -> BlockTensor:
    """All golden blocks of a type, extremes too, as rows of ``cols`` weights."""
    blocks = torch.from_numpy(GOLDEN[f"{kind.name}.blocks"].copy()).view(-1, kind.type_size)
    in_a_row = cols // kind.block_size
    rows = len(blocks) // in_a_row // 8 * 8
    return BlockTensor(blocks[: rows * in_a_row].view(rows, -1), int(kind.ggml_type))


def weight(matrices: list[BlockTensor], dtype=torch.float32, experts: int | None = None) -> Weight:
    """Matrices below each other, or one expert each."""
    pieces, row = [], 0
    for i, matrix in enumerate(matrices):
        pieces.append(Piece(i if experts else 0, 0 if experts else row, 0, matrix))
        row += len(matrix)
    rows = len(matrices[0]) if experts else row
    return Weight(experts, rows, matrices[0].shape[1], dtype, tuple(pieces))


def converted(layout: type[Layout], whole: Weight) -> Layout:
    result = allocated(whole, [layout])
    for piece in whole.pieces:
        result.put(piece)
    return result


def one(layout: type[Layout], matrix: BlockTensor, dtype=torch.float32) -> Weight:
    return weight([matrix], dtype, experts=1 if layout in GROUPED else None)


HELD = pytest.mark.parametrize(
    ("kind", "layout"),
    [
        pytest.param(kind, layout, id=f"{kind.name}-{layout.__name__}")
        for kind in QUANTIZED
        for layout in EXACT
        if layout not in (GroupedInt4, GroupedNibblePlanes)  # packed as Int4 and NibblePlanes
        and layout.unsupported_reason(one(layout, golden(kind))) is None
    ],
)


@EVERY_TYPE
def test_types_say_what_holds_them(kind):
    held = {
        layout for layout in LAYOUTS if layout.unsupported_reason(one(layout, golden(kind))) is None
    }
    expected = {NibblePlanes, PlanesRows, GroupedNibblePlanes}
    if kind.name in INT4:
        expected |= {Int4, Int4Rows, GroupedInt4}
    if kind.name not in IN_GROUPS_OF_16:
        expected |= {Int8, Int8Rows, GroupedWidePlanes}
    if kind.name != "Q2_K":
        expected |= {RequantizedInt8}
    assert held == expected


@HELD
def test_every_weight_is_exact_but_for_its_scale(kind, layout):
    """With scales of float32: bit for bit where nothing is added, else to float32's last places."""
    matrix = golden(kind)
    found, expected = (
        converted(layout, one(layout, matrix)).dequantize().view(matrix.shape),
        matrix.dequantize(),
    )
    if layout.packing.constant_offset(kind) == 0:
        assert torch.equal(found, expected)
    else:
        in_a_group = found.view(len(found), -1, 16), expected.view(len(found), -1, 16)
        largest = in_a_group[1].abs().amax(-1, keepdim=True)
        assert ((in_a_group[0] - in_a_group[1]).abs() <= 2.0**-19 * largest).all()


@pytest.mark.parametrize(
    ("dtype", "unit"),
    [
        (torch.float16, 2.0**-11),
        pytest.param(torch.bfloat16, 2.0**-8, marks=pytest.mark.slow),
    ],
)
@HELD
def test_the_rest_is_rounding_of_scales_and_offsets(kind, layout, dtype, unit):
    # Not the extremes: they overflow float16.
    matrix = golden(kind)[8:]
    found, expected = (
        converted(layout, one(layout, matrix, dtype)).dequantize().view(matrix.shape),
        matrix.dequantize(),
    )
    largest = expected.abs().amax(-1, keepdim=True)
    # Scales below the least float16 lose their last places: such weights are next to nothing.
    least = 1e-6 if dtype == torch.float16 else 0
    assert ((found - expected).abs() <= 2 * unit * largest + least).all()
    dense = (expected.to(dtype).float() - expected).square().mean().sqrt()
    rms = (found - expected).square().mean().sqrt()
    assert rms <= max(2 * float(dense), unit / 2 * float(expected.square().mean().sqrt()))


@pytest.mark.parametrize("name", NEAR_ERROR)
def test_error_of_requantized_types(name):
    matrix = golden(block_type(GGMLQuantizationType[name]))[8:]
    found = converted(RequantizedInt8, one(RequantizedInt8, matrix)).dequantize()
    expected = matrix.dequantize()
    error = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert 0 < error <= NEAR_ERROR[name]


@pytest.mark.parametrize(
    ("types", "default", "requantizes"),
    [
        ({"ffn_down": "Q6_K"}, "Q4_K", True),
        ({}, "Q6_K", False),
        # Of a small model the vocabulary may be most of the file.
        ({"token_embd|^output": "Q6_K", "ffn_down": "Q6_K"}, "Q4_K", True),
        ({"token_embd|^output": "Q4_K"}, "Q6_K", False),
    ],
)
def test_layers_decide_whether_types_are_requantized(tmp_path, types, default, requantizes):
    spec = Spec(vocab=8192, types=types, default=default)
    write_blocks(tmp_path / "model.gguf", spec)
    assert choose({}, tmp_path / "model.gguf").requantizes is requantizes


def q4_1(d: float, m: float) -> BlockTensor:
    """Eight rows of 64 weights ``d q + m``, with every q."""
    nibbles = np.tile(np.arange(16, dtype=np.uint8) * 0x11, (16, 1))
    halves = np.tile(np.array([[d, m]], dtype=np.float16).view(np.uint8), (16, 1))
    blocks = np.concatenate([halves, nibbles], axis=1).reshape(8, -1)
    return BlockTensor(torch.from_numpy(blocks), GGMLQuantizationType.Q4_1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize(
    ("d", "m"),
    [
        (0.0, 0.0), (0.0, -0.75), (0.0, 3.0), (-0.0, 1.0), (0.01, -0.08), (-0.01, 0.08),
        (6e-8, 0.5), (6e-8, -2.0), (1e-4, 1.0), (-1e-5, 60.0), (6e-8, 0.0), (2.0, 60000.0),
    ],
)  # fmt: skip
def test_scales_of_every_kind(layout, dtype, d, m):
    matrix = q4_1(d, m)
    found = converted(layout, one(layout, matrix, dtype)).dequantize().view(matrix.shape)
    expected = matrix.dequantize()
    unit = {torch.float32: 2.0**-19, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    limit = 3 * unit * expected.abs().max() + (1e-6 if dtype == torch.float16 else 0)
    assert torch.isfinite(found).all()
    assert ((found - expected).abs() <= limit).all()


def test_no_weight_becomes_nan_where_the_file_has_zeros():
    for kind in QUANTIZED:
        nbytes = 256 // kind.block_size * kind.type_size
        zeros = BlockTensor(torch.zeros(8, nbytes, dtype=torch.uint8), kind.ggml_type)
        expected = zeros.dequantize()
        for layout in LAYOUTS:
            whole = one(layout, zeros, torch.float16)
            if layout.unsupported_reason(whole) is None:
                assert torch.equal(converted(layout, whole).dequantize().view(8, 256), expected)


@pytest.mark.parametrize("layout", EXACT)
@pytest.mark.parametrize("columns", [(0, 96), (32, 160), (64, 256), (224, 512)], ids=str)
def test_columns_cut_inside_a_block(layout, columns):
    matrix = golden(block_type(GGMLQuantizationType.Q4_K), cols=512)
    cut = matrix[:, slice(*columns)]
    found = converted(layout, one(layout, cut, torch.float16)).dequantize()
    whole = converted(layout, one(layout, matrix, torch.float16)).dequantize()
    assert torch.equal(found, whole[..., slice(*columns)])


@pytest.mark.parametrize("names", [("Q4_K", "Q6_K", "Q4_K"), ("Q8_0", "Q4_1", "IQ3_S")], ids=str)
@pytest.mark.parametrize("layout", [RequantizedInt8, NibblePlanes])
def test_parts_of_different_types(layout, names):
    parts = [golden(block_type(GGMLQuantizationType[name]))[:16] for name in names]
    found = converted(layout, weight(parts, torch.float16)).dequantize()
    alone = [converted(layout, weight([part], torch.float16)).dequantize() for part in parts]
    assert torch.equal(found, torch.cat(alone))


@pytest.mark.parametrize("names", [("Q4_K", "Q6_K", "Q4_K"), ("Q8_0", "Q3_K", "IQ3_S")], ids=str)
def test_experts_of_different_types(names):
    experts = [golden(block_type(GGMLQuantizationType[name]))[:16] for name in names]
    whole = weight(experts, torch.float32, experts=3)
    found = converted(GroupedNibblePlanes, whole).dequantize()
    for i, expert in enumerate(experts):
        torch.testing.assert_close(found[i], expert.dequantize(), rtol=2e-6, atol=1e-7)


def test_rows_of_experts_in_any_pieces():
    matrix = golden(block_type(GGMLQuantizationType.Q4_0))
    rows = len(matrix)
    pieces = tuple(Piece(0, row, 0, matrix[row : row + 8]) for row in range(0, rows, 8))
    found = converted(GroupedInt4, Weight(1, rows, 256, torch.float32, pieces)).dequantize()
    assert torch.equal(found[0], matrix.dequantize())


@pytest.mark.parametrize("layout", [GroupedInt4, GroupedNibblePlanes])
@pytest.mark.parametrize("rows", [120, 128, 136, 392])
def test_many_rows_of_experts(layout, rows):
    matrix = golden(block_type(GGMLQuantizationType.Q4_0))
    matrix = many(matrix, rows)
    assert torch.equal(converted(layout, one(layout, matrix)).dequantize()[0], matrix.dequantize())


def test_rows_of_no_piece_are_zero():
    matrix = golden(block_type(GGMLQuantizationType.Q4_K))[:16]
    whole = Weight(None, 24, 256, torch.float16, (Piece(0, 0, 0, matrix),))
    for layout in (*(layout for layout in EXACT if layout not in GROUPED), Dense):
        assert not converted(layout, whole).dequantize()[16:].any()


def many(matrix: BlockTensor, rows: int) -> BlockTensor:
    """The rows of a matrix again and again."""
    again = -(-rows // len(matrix))
    blocks = matrix.blocks.repeat(again, 1)[:rows]
    return BlockTensor(blocks, matrix.block_type.ggml_type)


BY_COLUMNS = [
    (Int4, "Q4_K"), (Int8, "Q5_1"), (RequantizedInt8, "Q6_K"), (NibblePlanes, "Q6_K"),
    (WidePlanes, "Q8_0"),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "name"), BY_COLUMNS)
def test_linear_weights_are_contiguous_columns(layout, name):
    """What CANN recommends for weights in groups: [K, N / 8] or [K, N], scales [K / group, N]."""
    matrix = many(golden(block_type(GGMLQuantizationType[name])), 128)
    held = converted(layout, one(layout, matrix, torch.float16)).to(torch.device("cpu"))
    (operands,) = held.operands
    inputs = 512 if layout.packing.planes else 256
    eight = 1 if operands.packed.dtype == torch.int8 else 8
    assert operands.packed.shape == (inputs, 128 // eight)
    assert operands.scale.shape == (inputs // layout.packing.operator_group, 128)
    for tensor in (operands.packed, operands.scale, operands.offset):
        assert tensor is None or tensor.is_contiguous()


@pytest.mark.parametrize(
    ("layout", "name"),
    [(Int4, "Q4_1"), (Int8, "Q8_0"), (NibblePlanes, "Q5_0"), (WidePlanes, "Q8_0"),
     (Int4Rows, "Q4_1")],
)  # fmt: skip
def test_more_rows_than_the_operator_takes(layout, name):
    matrix = many(golden(block_type(GGMLQuantizationType[name]), cols=64), 70_016)
    # The last rows are padding, as those of a vocabulary may be, and begin anywhere.
    whole = Weight(None, 70_016, 64, torch.float16, (Piece(0, 0, 0, matrix[:70_001]),))
    result = converted(layout, whole).to(torch.device("cpu"))
    assert [part.rows for part in result.operands] == [slice(0, 35_008), slice(35_008, 70_016)]
    alone = converted(layout, one(layout, matrix[:128], torch.float16)).dequantize()
    again = converted(layout, one(layout, matrix[34_944:35_072], torch.float16)).dequantize()
    assert torch.equal(result.sample(slice(0, 128)), alone)
    assert torch.equal(result.sample(slice(34_944, 35_072)), again)
    last = converted(layout, one(layout, matrix[69_888:70_016], torch.float16)).dequantize()
    assert torch.equal(result.sample(slice(69_888, 70_001)), last[:113])
    assert not result.sample(slice(70_001, 70_016)).any()


@pytest.mark.parametrize("rows", [1, 3, 60, 66, 129, 200])
def test_any_number_of_rows_of_eight_bits(rows):
    parts = [many(golden(block_type(GGMLQuantizationType.Q8_0)), n) for n in (rows, 7)]
    found = converted(Int8, weight(parts)).dequantize()
    assert torch.equal(found, torch.cat([part.dequantize() for part in parts]))


def test_a_sample_is_some_rows():
    matrix = golden(block_type(GGMLQuantizationType.Q4_K))[:40]
    for layout in (*EXACT, Dense):
        result = converted(layout, one(layout, matrix, torch.float16))
        everything = result.dequantize().view(40, 256)
        for rows in (slice(0, 40), slice(3, 21), slice(8, 16), slice(39, 40)):
            assert torch.equal(result.sample(rows), everything[rows])


@pytest.mark.parametrize(
    ("layout", "name", "bits"),
    [
        (Int4, "Q4_0", 4.5), (Int4, "Q4_K", 5), (Int4, "TQ2_0", 4.5), (Int8, "Q8_0", 8.5),
        (Int8, "Q5_K", 9), (RequantizedInt8, "Q6_K", 8.5), (NibblePlanes, "Q6_K", 9),
        (NibblePlanes, "Q2_K", 10),
        (Int4Rows, "Q4_K", 5), (Int8Rows, "Q8_0", 8.5), (PlanesRows, "Q6_K", 9),
        (GroupedInt4, "Q4_0", 4.5), (GroupedInt4, "Q4_K", 5), (GroupedInt4, "IQ3_S", 4.5),
        (GroupedWidePlanes, "Q8_0", 8.5), (GroupedWidePlanes, "Q5_1", 9),
        (GroupedNibblePlanes, "Q8_0", 9), (GroupedNibblePlanes, "Q6_K", 9), (Dense, "Q4_K", 16),
    ],
)  # fmt: skip
def test_bits_of_a_weight(layout, name, bits):
    matrix = golden(block_type(GGMLQuantizationType[name]))[:16]
    held = allocated(one(layout, matrix, torch.bfloat16), [layout])
    assert 8 * held.nbytes == bits * matrix.numel()


def test_constant_offsets_are_one_tensor_for_all_layers():
    matrix = golden(block_type(GGMLQuantizationType.Q8_0))[:16]
    first, second = (
        converted(GroupedNibblePlanes, one(GroupedNibblePlanes, matrix)) for _ in range(2)
    )
    assert first.offset is second.offset
    assert first.nbytes == first.tensors["packed"].nbytes + first.tensors["scale"].nbytes


def unsupported_reason(
    layout: type[Layout], matrix: BlockTensor, experts: int | None = None
) -> str | None:
    return layout.unsupported_reason(weight([matrix] * (experts or 1), torch.float16, experts))


def test_obstacles_say_what_is_in_the_way():
    numbers = BlockTensor(torch.zeros(8, 512, dtype=torch.uint8), GGMLQuantizationType.F16)
    q4_k = golden(block_type(GGMLQuantizationType.Q4_K))[:16]
    q6_k = golden(block_type(GGMLQuantizationType.Q6_K))[:16]
    assert unsupported_reason(Int4, numbers) == "a part is not quantized"
    assert unsupported_reason(Int4, q6_k) == "Q6_K does not fit 4 bits"
    assert unsupported_reason(Int8, q6_k) == "Q6_K has a scale for 16 weights"
    assert "not on multiples of 32" in unsupported_reason(Int4, q4_k[:, 16:144])
    assert "32 columns are not a multiple of 32 from 64" in unsupported_reason(Int4, q4_k[:, :32])
    assert unsupported_reason(GroupedInt4, q4_k[:12], 2) == "its rows are not multiples of 8"
    assert unsupported_reason(Int4, q4_k[:12]) == "its rows are not multiples of 8"
    assert unsupported_reason(Int4, q4_k[:4]) == "its rows are not multiples of 8"
    assert unsupported_reason(Int4Rows, q4_k[:12]) is None
    assert unsupported_reason(WidePlanes, q4_k) == "16 rows are not a multiple of 64"
    assert unsupported_reason(WidePlanes, many(q4_k, 64)) is None
    assert unsupported_reason(WidePlanes, many(q6_k, 64)) == "Q6_K has a scale for 16 weights"
    assert unsupported_reason(GroupedInt4, q4_k) == "it has no experts"
    assert unsupported_reason(Int4, q4_k, 2) == "it has experts"


def test_the_first_form_that_fits_is_taken():
    matrix = golden(block_type(GGMLQuantizationType.Q6_K))[:16]
    layout = allocated(weight([matrix], torch.float16), [Int4, Int8, NibblePlanes, Dense])
    assert type(layout) is NibblePlanes
    assert set(layout.unsupported) == {"int4", "int8"}
    with pytest.raises(ValueError, match="int4: Q6_K does not fit 4 bits; int8: Q6_K has a scale"):
        allocated(weight([matrix], torch.float16), [Int4, Int8])


@pytest.mark.parametrize(("layout", "module"), [(Int8, column_groups), (Int8Rows, conversion)])
def test_one_piece_or_many_make_the_same(monkeypatch, layout, module):
    some = golden(block_type(GGMLQuantizationType.Q5_K))
    rows = BlockTensor(some.blocks.repeat(32, 1), int(some.block_type.ggml_type))
    whole = one(layout, rows, torch.float16)
    found, pieces = [], []
    for weights in (1, 1 << 30):
        monkeypatch.setattr(module, "WEIGHTS_PER_PIECE", weights)
        found.append(converted(layout, whole))
        pieces.append(len(list(found[-1].tasks(whole.pieces[0]))))
    assert pieces[0] > pieces[1] == 1
    for name, tensor in found[0].tensors.items():
        assert torch.equal(tensor, found[1].tensors[name])
