"""A parameter that takes a weight in pieces."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor
from ascend_gguf.npu.experts import GroupedInt4
from ascend_gguf.npu.int4 import Int4
from ascend_gguf.npu.int8 import Int8
from ascend_gguf.npu.nibble_planes import NibblePlanes
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.load_stream import Stream
from ascend_gguf.weights.pending import PendingWeight
from random_model import random_blocks

CPU = torch.device("cpu")


def matrix(type_name: str, rows: int, cols: int = 256, seed: int = 0) -> BlockTensor:
    blocks, _ = random_blocks(np.random.default_rng(seed), type_name, (rows, cols))
    return BlockTensor(torch.from_numpy(blocks), GGMLQuantizationType[type_name])


def parameter(*shape: int, layouts=(Int4, Int8, NibblePlanes, Dense)) -> torch.nn.Parameter:
    return torch.nn.Parameter(
        PendingWeight(shape, torch.float16, CPU, layouts), requires_grad=False
    )


def test_it_looks_like_the_weight():
    weight = parameter(24, 256)
    assert isinstance(weight, torch.nn.Parameter) and isinstance(weight.data, PendingWeight)
    assert weight.shape == (24, 256) and weight.dtype == torch.float16 and weight.device == CPU
    assert weight.data.narrow(0, 8, 4).shape == (4, 256)
    assert weight[3:].data.shape == (21, 256)
    assert parameter(3, 16, 64).data[1].narrow(1, 32, 32).shape == (16, 32)
    assert "PendingWeight(shape=(24, 256))" in repr(weight.data)


def test_a_module_that_is_made_float32_loads_as_before():
    module, part = torch.nn.Module(), matrix("Q4_K", 16)
    module.weight = parameter(16, 256)
    weight = module.float().weight
    weight.data.copy_(part)
    assert weight.dtype == torch.float16 and type(weight.whole.loaded) is Int4
    torch.testing.assert_close(
        weight.whole.loaded.dequantize(), part.dequantize(), rtol=2e-3, atol=2e-2
    )
    with pytest.raises(NotImplementedError, match="has not been loaded"):
        parameter(16, 256).data.to(torch.float64)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_parts_in_any_order(order):
    weight = parameter(32, 256)
    weight.data[28:].zero_()
    parts = [(0, matrix("Q4_K", 8)), (8, matrix("Q4_0", 16)), (24, matrix("Q4_1", 4))]
    for i in order:
        assert weight.whole.loaded is None
        row, part = parts[i]
        weight.data.narrow(0, row, len(part)).copy_(part)
    assert type(weight.whole.loaded) is Int4
    expected = torch.cat([*(part.dequantize() for _, part in parts), torch.zeros(4, 256)])
    torch.testing.assert_close(weight.whole.loaded.dequantize(), expected, rtol=2e-3, atol=2e-2)


@pytest.mark.parametrize(
    ("types", "layout"),
    [(("Q4_K", "Q4_0"), Int4), (("Q4_K", "Q8_0"), Int8), (("Q6_K", "Q4_K"), NibblePlanes),
     (("F16", "Q4_K"), Dense), (("F32", "BF16"), Dense)],
)  # fmt: skip
def test_the_form_holds_all_parts(types, layout):
    weight = parameter(32, 256)
    parts = [matrix(type_name, 16) for type_name in types]
    for row, part in zip((0, 16), parts, strict=True):
        weight.data[row : row + 16].copy_(part)
    assert type(weight.whole.loaded) is layout
    expected = torch.cat([part.dequantize() for part in parts])
    torch.testing.assert_close(weight.whole.loaded.dequantize(), expected, rtol=2e-3, atol=2e-2)


def test_columns_of_this_rank():
    whole, weight = matrix("Q4_K", 16, 512), parameter(16, 224)
    weight.data.copy_(whole.narrow(1, 288, 224))
    assert type(weight.whole.loaded) is Int4
    found = weight.whole.loaded.dequantize()
    torch.testing.assert_close(found, whole.dequantize()[:, 288:], rtol=2e-3, atol=2e-2)


def test_columns_cut_off_a_group_stay_numbers():
    whole, weight = matrix("Q4_K", 16), parameter(16, 112)
    weight.data.copy_(whole.narrow(1, 112, 112))
    layout = weight.whole.loaded
    assert type(layout) is Dense
    assert "not on multiples of 32" in layout.unsupported["int4"]
    assert torch.equal(layout.tensors["weight"], whole.dequantize()[:, 112:224].half())


def test_columns_that_come_in_parts_are_numbers():
    left, right, weight = matrix("Q4_0", 8, 64), matrix("Q4_0", 8, 64, 1), parameter(8, 128)
    weight.data.narrow(1, 0, 64).copy_(left)
    weight.data.narrow(1, 64, 64).copy_(right)
    assert type(weight.whole.loaded) is Dense
    expected = torch.cat([left.dequantize(), right.dequantize()], dim=1).half()
    assert torch.equal(weight.whole.loaded.tensors["weight"], expected)


@pytest.mark.parametrize("fill", [lambda t: t.zero_(), lambda t: t.fill_(0)])
def test_padding(fill):
    weight, part = parameter(64, 256), matrix("Q4_K", 40)
    weight[:40].data.copy_(part)
    assert weight.whole.loaded is None
    fill(weight[40:].data)
    assert not weight.whole.loaded.dequantize()[40:].any()
    fill(weight[64:].data)  # of no rows: the loader of a vocabulary without padding


def test_a_rank_that_has_padding_alone():
    # As the engine's narrow_padded_param_and_loaded_weight does.
    weight, part = parameter(64, 256), matrix("Q4_K", 32)
    nothing = torch.zeros_like(weight.data.narrow(0, 32, 0))
    weight.data.narrow(0, 32, 32).zero_()
    weight.data.narrow(0, 32, 0).copy_(nothing)
    weight.data[:32].copy_(part)
    assert not weight.whole.loaded.dequantize()[32:].any()
    whole = parameter(64, 256)
    whole.data.zero_()
    assert not whole.whole.loaded.dequantize().any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_numbers_that_a_model_made(dtype):
    weight, numbers = parameter(16, 256), torch.randn(16, 256).to(dtype)
    weight.data.copy_(numbers)
    assert torch.equal(weight.whole.loaded.dequantize(), numbers.to(torch.float16).float())


def test_experts():
    weight = parameter(3, 32, 256, layouts=(GroupedInt4, Dense))
    parts = {(e, row): matrix("Q4_K", 16, seed=e + row) for e in range(3) for row in (16, 0)}
    for (expert, row), part in parts.items():
        assert weight.whole.loaded is None
        weight.data[expert].narrow(0, row, 16).copy_(part)
    found = weight.whole.loaded.dequantize()
    for (expert, row), part in parts.items():
        expected = part.dequantize()
        torch.testing.assert_close(found[expert, row : row + 16], expected, rtol=2e-3, atol=2e-2)


def test_a_piece_that_comes_twice_before_the_rest():
    weight, part = parameter(16, 256), matrix("Q4_K", 16)
    for _ in range(2):
        weight.data[:8].copy_(part[:8])
    weight.data[8:].copy_(part[8:])
    assert weight.whole.loaded is not None


def test_threads_of_a_stream_convert():
    weights = [parameter(3, 512, 512, layouts=(GroupedInt4, Dense)) for _ in range(4)]
    parts = [matrix("Q4_K", 512, 512, seed=i) for i in range(3)]
    with Stream(threads=3):
        for weight in weights:
            for expert, part in enumerate(parts):
                weight.data[expert].copy_(part)
    first, *others = (weight.whole.loaded for weight in weights)
    for layout in others:
        for name, tensor in layout.tensors.items():
            assert torch.equal(tensor, first.tensors[name])


def test_what_is_no_number_is_seen():
    blocks = matrix("Q8_0", 16).blocks.clone()
    blocks[5, 1] = 0x7E  # the scale of its first block
    weight = parameter(16, 256)
    weight.data.copy_(BlockTensor(blocks, GGMLQuantizationType.Q8_0))
    assert weight.whole.has_nan


def test_wrong_shapes_and_more_than_all_are_refused():
    weight, part = parameter(16, 256), matrix("Q4_K", 16)
    with pytest.raises(ValueError, match="does not take"):
        weight.data[:8].copy_(part)
    with pytest.raises(TypeError, match="takes no torch.int8"):
        weight.data[:16].copy_(torch.zeros(16, 256, dtype=torch.int8))
    weight.data.copy_(part)
    with pytest.raises(ValueError, match="weight loaded twice"):
        weight.data.copy_(part)


@pytest.mark.parametrize("use", [lambda t: t + 1, lambda t: t.fill_(1), lambda t: t[::2].sum()])
def test_it_has_no_numbers(use):
    with pytest.raises(NotImplementedError, match="has not been loaded"):
        use(parameter(16, 256).data)
