"""BlockTensor: a matrix in blocks that behaves as the matrix of its numbers."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from ascend_gguf import BlockTensor, GGUFError
from ascend_gguf.weights import block_tensor
from random_model import ALL_TYPES, random_blocks

ROWS = 6
#: Three blocks of the largest type; whole blocks of every other.
COLS = 768

EVERY_TYPE = pytest.mark.parametrize("name", ALL_TYPES)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def matrix(name: str, *shape: int, seed: int = 0) -> tuple[BlockTensor, torch.Tensor]:
    """A matrix of a block type and, by ggml's own C code, its numbers."""
    rng = np.random.default_rng(seed)
    blocks, values = random_blocks(rng, name, shape or (ROWS, COLS))
    blocks = BlockTensor(torch.from_numpy(blocks), GGMLQuantizationType[name])
    return blocks, torch.from_numpy(values)


def block_size(name: str) -> int:
    return GGML_QUANT_SIZES[GGMLQuantizationType[name]][0]


def boundaries(name: str) -> list[tuple[int, int]]:
    """Ranges of columns: at block boundaries, off them, of one weight, and empty."""
    size = block_size(name)
    near = {0, 1, size - 1, size, size + 1, COLS // 2, COLS - size, COLS - 1, COLS}
    return list(itertools.combinations(sorted(near), 2)) + [(0, 0), (size, size), (3, 3)]


@EVERY_TYPE
def test_looks_like_its_numbers(name):
    blocks, values = matrix(name)
    assert isinstance(blocks, torch.Tensor)
    assert blocks.shape == values.shape
    assert blocks.dtype is torch.float32
    assert blocks.device == torch.device("cpu")
    assert (blocks.dim(), blocks.numel()) == (2, values.numel())
    assert not blocks.requires_grad
    assert blocks.block_type.name == name
    assert blocks.columns == (0, COLS)
    assert torch.equal(blocks.dequantize(), values)
    assert torch.equal(blocks, values)
    assert torch.equal(values, blocks)


def test_blocks_are_kept_by_reference():
    data = torch.zeros(4, 144, dtype=torch.uint8)
    blocks = BlockTensor(data, 12)
    assert blocks.blocks is data
    assert blocks[1:3].blocks.data_ptr() == data.data_ptr() + 144
    assert blocks[:, 7:].blocks.data_ptr() == data.data_ptr()


@EVERY_TYPE
def test_columns(name):
    blocks, values = matrix(name)
    for start, stop in boundaries(name):
        part = blocks.narrow(1, start, stop - start)
        assert isinstance(part, BlockTensor)
        assert part.columns == (start, stop)
        assert part.shape == (ROWS, stop - start)
        assert torch.equal(part, values[:, start:stop]), (start, stop)
        assert torch.equal(blocks[:, start:stop], values[:, start:stop])


@EVERY_TYPE
def test_rows(name):
    blocks, values = matrix(name)
    for start, stop in [(0, 6), (0, 1), (2, 5), (5, 6), (3, 3), (6, 6)]:
        part = blocks.narrow(0, start, stop - start)
        assert isinstance(part, BlockTensor)
        assert torch.equal(part, values[start:stop])


@EVERY_TYPE
def test_columns_of_rows_of_columns(name):
    blocks, values = matrix(name)

    def cut(x: torch.Tensor) -> torch.Tensor:
        x = x.narrow(1, 5, 700).narrow(0, 1, 4)
        return x[1:, 30:-3].narrow(-1, 2, 500).narrow(-2, 0, 2)[:, 11:489]

    part = cut(blocks)
    assert isinstance(part, BlockTensor)
    assert part.columns == (5 + 30 + 2 + 11, 5 + 30 + 2 + 489)
    assert torch.equal(part, cut(values))


@pytest.mark.parametrize(
    "index",
    [
        slice(None),
        slice(-2, None),
        slice(None, -2),
        slice(2, 100),
        slice(100, 200),
        slice(4, 2),
        (slice(None), slice(-300, -1)),
        (slice(None), slice(100, 10_000)),
        (slice(1, 5), slice(3, 700)),
        (..., slice(3, 700)),
        (slice(None), slice(None, None, 2)),
        (slice(None, None, 2), slice(3, None)),
        2,
        -1,
        (2, slice(5, 300)),
        (slice(None), 3),
        (2, 3),
        (..., 3),
        None,
        torch.tensor([4, 0, 4]),
        torch.tensor([True, False, True, False, False, True]),
        (slice(None), torch.tensor([767, 0])),
    ],
    ids=str,
)
def test_indices(index):
    blocks, values = matrix("Q4_K")
    for source, numbers in ((blocks, values), (blocks[:, 1:], values[:, 1:])):
        if isinstance(index, tuple) and isinstance(index[1], torch.Tensor):
            index = (index[0], index[1].clamp(max=source.shape[1] - 1))
        assert torch.equal(source[index] + 0, numbers[index])


@pytest.mark.parametrize("sizes, dim", [(2, 0), ([1, 0, ROWS - 1], 0), ([5, 763], 1), (300, -1)])
def test_split_is_a_view(sizes, dim):
    """The engine's loader of merged projections of linear attention splits."""
    blocks, values = matrix("Q4_K")
    parts = blocks.split(sizes, dim)
    assert all(isinstance(part, BlockTensor) for part in parts)
    for part, expected in zip(parts, values.split(sizes, dim), strict=True):
        assert torch.equal(part.dequantize(), expected)
    with pytest.raises((RuntimeError, ValueError)):
        blocks.split([1, 1], dim)


@pytest.mark.parametrize("cut", [(0, 5, 2), (1, 700, 69), (0, -7, 1), (2, 0, 1)], ids=str)
def test_narrow_out_of_range(cut):
    blocks, _ = matrix("Q4_K")
    with pytest.raises((RuntimeError, IndexError)):
        blocks.narrow(*cut)


def test_index_out_of_range():
    blocks, _ = matrix("Q4_K")
    with pytest.raises(IndexError):
        blocks[ROWS]


OPERATORS = {
    "chunk rows": lambda x, y: x.chunk(2, dim=0)[1],
    "chunk columns": lambda x, y: x.chunk(5, dim=1)[3],
    "split rows": lambda x, y: x.split([1, 4, 1])[1],
    "split columns": lambda x, y: x.split(100, dim=1)[7],
    "tensor_split": lambda x, y: x.tensor_split((5, 300), dim=1)[1],
    "unbind": lambda x, y: x.unbind()[2],
    "iteration": lambda x, y: list(x)[4],
    "select column": lambda x, y: x.select(1, 7),
    "transpose": lambda x, y: x.t(),
    "T": lambda x, y: x.T,
    "permute": lambda x, y: x.permute(1, 0),
    "view": lambda x, y: x.view(-1),
    "reshape": lambda x, y: x.reshape(2, 3, COLS),
    "unsqueeze": lambda x, y: x.unsqueeze(0),
    "expand": lambda x, y: x.expand(2, ROWS, COLS),
    "contiguous": lambda x, y: x[:, 5:99].contiguous() + 0,
    "flip": lambda x, y: x.flip(1),
    "cat": lambda x, y: torch.cat([x, y, x[:, :]]),
    "cat columns": lambda x, y: torch.cat([x[:, 300:], y[:, :5]], dim=1),
    "stack": lambda x, y: torch.stack([x, x]),
    "add": lambda x, y: x + y,
    "add from the right": lambda x, y: y + x,
    "scale": lambda x, y: 2.5 * x - 1,
    "negative": lambda x, y: -x,
    "compare": lambda x, y: x < y,
    "sum": lambda x, y: x.sum(dim=1),
    "matmul": lambda x, y: y @ x.t(),
    "linear": lambda x, y: torch.nn.functional.linear(y, x),
    "linear, cut": lambda x, y: torch.nn.functional.linear(y[:, 3:], x[:, 3:]),
    "gather": lambda x, y: torch.nn.functional.embedding(torch.tensor([3, 0]), x),
    "float64": lambda x, y: x.double(),
    "float16": lambda x, y: x.to(torch.float16),
    "bfloat16": lambda x, y: x.bfloat16(),
    "float32": lambda x, y: x.to(torch.float32) + 0,
    "cpu": lambda x, y: x.cpu() + 0,
    "abs max": lambda x, y: x.abs().amax(),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "out=": lambda x, y: torch.add(x, y, out=torch.empty(ROWS, COLS)),
    "data": lambda x, y: x.data + 0,
    "detach": lambda x, y: x.detach() + 0,
}


@EVERY_TYPE
def test_any_operator_acts_on_the_numbers(name):
    blocks, values = matrix(name)
    _, other = matrix(name, seed=1)
    for label, operator in OPERATORS.items():
        result, expected = operator(blocks, other), operator(values, other)
        assert result.dtype is expected.dtype, label
        assert torch.equal(result, expected), label


@EVERY_TYPE
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_copying_into_parameters(name, dtype):
    blocks, values = matrix(name)
    parameter = torch.nn.Parameter(torch.empty(ROWS, COLS, dtype=dtype), requires_grad=False)
    assert parameter.data.copy_(blocks) is not blocks
    assert torch.equal(parameter, values.to(dtype))
    for start, stop in boundaries(name):
        parameter = torch.nn.Parameter(
            torch.full((2 * ROWS, stop - start), 7.0).to(dtype), requires_grad=False
        )
        parameter.data.narrow(0, 2, ROWS).copy_(blocks.narrow(1, start, stop - start))
        expected = torch.full((2 * ROWS, stop - start), 7.0).to(dtype)
        expected[2 : 2 + ROWS] = values[:, start:stop].to(dtype)
        assert torch.equal(parameter, expected), (start, stop)


DESTINATIONS = {
    "whole": lambda: (torch.full((ROWS, 300), 7.0), lambda p: p),
    "rows": lambda: (torch.full((20, 300), 7.0), lambda p: p.narrow(0, 9, ROWS)),
    "columns": lambda: (torch.full((ROWS, 999), 7.0), lambda p: p.narrow(1, 33, 300)),
    "both": lambda: (torch.full((20, 999), 7.0), lambda p: p[9 : 9 + ROWS, 33:333]),
    "every other row": lambda: (torch.full((2 * ROWS, 300), 7.0), lambda p: p[::2]),
    "expert": lambda: (torch.full((3, 20, 999), 7.0), lambda p: p[1, 9 : 9 + ROWS, 33:333]),
    "transposed": lambda: (torch.full((300, ROWS), 7.0), lambda p: p.t()),
}


@pytest.mark.parametrize("destination", DESTINATIONS.values(), ids=DESTINATIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("start", [0, 256, 5])  # the start and the end of a slice may be aligned
def test_copying_into_parts_of_parameters(destination, dtype, start):
    blocks, values = matrix("Q4_K")
    parameter, part = destination()
    parameter = parameter.to(dtype)
    expected = parameter.clone()
    part(parameter).copy_(blocks.narrow(1, start, 300))
    part(expected).copy_(values.narrow(1, start, 300))
    assert torch.equal(parameter, expected)


def test_assigning_to_an_index():
    blocks, values = matrix("IQ4_XS")
    parameter = torch.zeros(2, ROWS, COLS)
    parameter[1] = blocks
    parameter[0, :, 3:300] = blocks[:, 10:307]
    assert torch.equal(parameter[1], values)
    assert torch.equal(parameter[0, :, 3:300], values[:, 10:307])
    assert parameter[0, :, 300:].count_nonzero() == 0


@pytest.mark.parametrize("shape", [(ROWS, COLS - 1), (ROWS + 1, COLS), (COLS, ROWS)], ids=str)
def test_copying_into_another_shape(shape):
    blocks, _ = matrix("Q8_0")
    with pytest.raises((ValueError, RuntimeError)):
        torch.empty(shape).copy_(blocks)
    with pytest.raises((ValueError, RuntimeError)):
        torch.empty(shape).copy_(blocks[:, 5:])


def test_copying_never_broadcasts():
    blocks, _ = matrix("Q8_0")
    with pytest.raises((ValueError, RuntimeError)):
        torch.empty(ROWS, COLS).copy_(blocks[:1])
    with pytest.raises((ValueError, RuntimeError)):
        torch.empty(ROWS, 700).copy_(blocks[:1, :700])


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.copy_(torch.zeros(ROWS, COLS)),
        lambda x: x.zero_(),
        lambda x: x.add_(1),
        lambda x: x.__setitem__(0, 1.0),
        lambda x: torch.add(torch.zeros(ROWS, COLS), 1, out=x),
    ],
    ids=["copy_", "zero_", "add_", "setitem", "out"],
)
def test_writing_is_refused(write):
    blocks, _ = matrix("Q8_0")
    with pytest.raises((RuntimeError, TypeError, NotImplementedError)):
        write(blocks)


def test_meta_destination():
    """A device that is not the host: the numbers are decoded here and copied there."""
    blocks, _ = matrix("Q4_K")
    for part in (blocks, blocks[:, 5:99]):
        parameter = torch.empty(part.shape, device="meta", dtype=torch.bfloat16)
        assert parameter.copy_(part).device.type == "meta"


def test_default_device_does_not_matter():
    blocks, values = matrix("Q4_K")
    with torch.device("meta"):
        decoded = blocks[:, 5:99].dequantize()
    assert torch.equal(decoded, values[:, 5:99])


def test_default_dtype_does_not_matter():
    torch.set_default_dtype(torch.bfloat16)
    try:
        blocks, values = matrix("Q4_K")
        assert blocks.dtype is torch.float32
        assert torch.equal(blocks[:, 5:99], values[:, 5:99])
    finally:
        torch.set_default_dtype(torch.float32)


@EVERY_TYPE
def test_only_covering_blocks_are_decoded(name):
    """Every other block may be garbage."""
    blocks, values = matrix(name)
    size, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    for start, stop in boundaries(name):
        data = blocks.blocks.view(ROWS, -1, nbytes).clone()
        first, last = start // size, -(-stop // size)
        data[:, :first] = 0xFF  # NaN, where the type has one
        data[:, last:] = 0xFF
        data[:2] = 0xFF
        spoilt = BlockTensor(data.view(ROWS, -1), GGMLQuantizationType[name])
        assert torch.equal(spoilt[2:, start:stop], values[2:, start:stop]), (start, stop)


def test_how_much_is_decoded(monkeypatch):
    decoded = []

    def counted(blocks, *args, **kwargs):
        decoded.append(tuple(blocks.shape))
        return original(blocks, *args, **kwargs)

    original = block_tensor.dequantize
    monkeypatch.setattr(block_tensor, "dequantize", counted)
    blocks, _ = matrix("Q4_K")
    part = blocks[1:5].narrow(1, 300, 100)[:, 5:]
    repr(part), part.shape, part.numel(), part.detach(), part[0], part.contiguous()
    assert decoded == []  # nothing was copied yet
    torch.empty(4, 95).copy_(part)
    assert decoded == [(4, 144)]
    torch.empty(ROWS, COLS).copy_(blocks)
    assert decoded[1:] == [(ROWS, 3 * 144)]
    torch.empty(ROWS, 256).copy_(blocks[:, 256:512])
    torch.empty(95).copy_(part[2])
    assert decoded[2:] == [(ROWS, 144), (144,)]


def test_repr_shows_type_and_shape():
    blocks, _ = matrix("IQ3_XXS")
    assert repr(blocks[:, 3:]) == str(blocks[:, 3:]) == "BlockTensor(IQ3_XXS, shape=(6, 765))"


@pytest.mark.parametrize("create", [torch.empty_like, torch.zeros_like, torch.ones_like])
def test_new_tensors_like_it_are_plain(create):
    blocks, _ = matrix("Q4_K")
    new = create(blocks[:, 5:])
    assert type(new) is torch.Tensor
    assert (new.shape, new.dtype) == ((ROWS, COLS - 5), torch.float32)
    assert torch.equal(new.copy_(blocks[:, 5:]), blocks[:, 5:])


@EVERY_TYPE
def test_cloning(name):
    blocks, values = matrix(name)
    for copy in (blocks.clone(), blocks[:, 3:].clone(), blocks.bfloat16()):
        assert type(copy) is torch.Tensor
        assert copy.data_ptr() != blocks.blocks.data_ptr()
    copy = blocks[:, 3:].clone()
    copy.zero_()
    assert torch.equal(blocks, values)


def test_pickling():
    blocks, values = matrix("Q4_K")
    twin = pickle.loads(pickle.dumps(blocks[1:, 5:99]))
    assert isinstance(twin, BlockTensor)
    assert torch.equal(twin, values[1:, 5:99])


@EVERY_TYPE
def test_stacks_of_matrices(name):
    blocks, values = matrix(name, 3, ROWS, COLS)
    assert blocks.shape == (3, ROWS, COLS)
    assert torch.equal(blocks, values)
    expert = blocks[1]
    assert isinstance(expert, BlockTensor)
    assert torch.equal(expert, values[1])
    cut = blocks[1:, 2:5, 7:300]
    assert isinstance(cut, BlockTensor)
    assert torch.equal(cut, values[1:, 2:5, 7:300])
    assert torch.equal(cut[-1].narrow(0, 1, 2).narrow(1, 5, 99), values[2, 3:5, 12:111])
    assert torch.equal(blocks.select(1, 4)[:, 3:9], values.select(1, 4)[:, 3:9])
    parameter = torch.zeros(3, 2 * ROWS, COLS, dtype=torch.bfloat16)
    parameter[:, ROWS:, 5:].copy_(blocks[:, :, 5:])
    assert torch.equal(parameter[:, ROWS:, 5:], values[:, :, 5:].bfloat16())


def test_strided_blocks():
    """As a column range of a wider matrix, or an expert of an interleaved stack, has them."""
    blocks, values = matrix("Q5_K")
    wide = torch.full((2 * ROWS, 3 * 176 + 11), 0xFF, dtype=torch.uint8)
    view = wide[::2, 4 : 4 + 3 * 176]
    view.copy_(blocks.blocks)
    assert torch.equal(BlockTensor(view, GGMLQuantizationType.Q5_K)[1:, 5:], values[1:, 5:])


def test_bad_blocks():
    with pytest.raises(GGUFError, match="unknown block type"):
        BlockTensor(torch.zeros(1, 144, dtype=torch.uint8), 99)
    with pytest.raises(GGUFError, match="whole number of Q4_K blocks"):
        BlockTensor(torch.zeros(1, 145, dtype=torch.uint8), 12)
