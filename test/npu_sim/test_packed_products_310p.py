"""A product whose documents have no groups: what they leave open is tried, and refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor
from ascend_gguf.npu.channel_int8 import ChannelInt8, NPUChannelLinear
from ascend_gguf.npu.experts import EXPERT_LAYOUTS
from ascend_gguf.npu.linear import NPULinear
from ascend_gguf.npu.products import EXPERTS, LINEAR, PRODUCTS, this_product
from ascend_gguf.npu.self_check import linear_mismatch
from ascend_gguf.weights.layout import Piece, Weight, allocated
from random_model import random_blocks

pytestmark = pytest.mark.npu_sim(soc="310P3")


def test_this_product():
    assert this_product().name == "Atlas inference series (310P)"
    assert not this_product().layouts(LINEAR, NPULinear.layouts)


def test_what_is_tried_is_refused(caplog):
    from sglang.srt.layers.quantization.gguf import GGUFConfig

    from ascend_gguf.srt.layers.quantization import kernels

    caplog.set_level("INFO", kernels.logger.name)
    assert kernels.linear_kernel(GGUFConfig(), torch.float16) is None
    assert kernels.expert_layouts(GGUFConfig(), torch.float16) == ()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("int8 weights, which Ascend310P3 may not take, are not used: int8 64 x ")
    assert "EZ1001: npu_weight_quant_batchmatmul: argument 'antiquant_group_size'" in line


def test_int8_with_a_scale_a_row():
    blocks, _ = random_blocks(np.random.default_rng(0), "Q4_K", (48, 256))
    matrix = BlockTensor(torch.from_numpy(blocks).view(48, -1), GGMLQuantizationType.Q4_K)
    piece = Piece(0, 0, 0, matrix)
    layout = allocated(Weight(None, 48, 256, torch.float16, (piece,)), [ChannelInt8])
    layout.put(piece)
    weight, kernel = layout.to(torch.device("npu")), NPUChannelLinear()
    assert linear_mismatch(kernel, weight, is_embedding=True) is None
    x, bias = torch.randn(2, 3, 256).half(), torch.randn(48).half()
    found = kernel.linear(x.npu(), weight, bias.npu()).cpu().float()
    expected = x.float() @ weight.dequantize().t() + bias.float()
    assert (found - expected).norm() <= 0.002 * expected.norm()
    assert kernel.linear(x[:0].npu(), weight).shape == (0, 3, 48)


def test_a_chip_that_nobody_knows(monkeypatch, caplog):
    """Everything is tried; here the operators are those of a 910B."""
    from sglang.srt.layers.quantization.gguf import GGUFConfig

    from ascend_gguf.srt.layers.quantization import kernels

    kernels.works.cache_clear()
    monkeypatch.setenv("NPU_SIM_SOC", "Ascend910B3")
    monkeypatch.setattr(kernels, "this_product", lambda: PRODUCTS[-1])
    kernel = kernels.linear_kernel(GGUFConfig(), torch.bfloat16)
    assert [layout.name for layout in kernel.layouts] == ["int4", "int8", "planes"]
    assert kernels.expert_layouts(GGUFConfig(), torch.bfloat16) == EXPERT_LAYOUTS
    kernels.works.cache_clear()
    monkeypatch.setenv("NPU_SIM_FAULT", "wrong:npu_weight_quant_batchmatmul:int8")
    kernel = kernels.linear_kernel(GGUFConfig(), torch.bfloat16)
    assert [layout.name for layout in kernel.layouts] == ["int4", "planes"]
    kernels.works.cache_clear()


def test_names_of_operators():
    for name in (LINEAR, EXPERTS):
        assert hasattr(torch.ops.npu, name)
