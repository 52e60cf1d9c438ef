"""This project's kernels on the simulated NPU: products with packed weights, and trust in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor
from ascend_gguf.npu.experts import (
    EXPERT_LAYOUTS,
    Grouped,
    GroupedInt4,
    GroupedNibblePlanes,
    GroupedWidePlanes,
)
from ascend_gguf.npu.int4 import Int4, Int4Rows
from ascend_gguf.npu.int8 import Int8, Int8Rows, RequantizedInt8
from ascend_gguf.npu.linear import NPUEmbedding, NPULinear
from ascend_gguf.npu.nibble_planes import NibblePlanes, PlanesRows, WidePlanes
from ascend_gguf.npu.row_groups import RowGroups
from ascend_gguf.npu.self_check import SelfCheck, experts_mismatch, linear_mismatch
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated
from npu_sim.operators import faults
from random_model import random_blocks

pytestmark = pytest.mark.npu_sim(soc="910B3", devices=1, memory_gb=2)

DTYPES = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
COLUMNS = [
    (Int4, "Q4_K"), (Int4, "Q4_0"), (Int4, "IQ3_S"), (Int8, "Q5_K"), (Int8, "Q8_0"),
    (RequantizedInt8, "Q6_K"), (NibblePlanes, "Q6_K"), (NibblePlanes, "Q2_K"),
    (WidePlanes, "Q8_0"), (WidePlanes, "Q5_K"),
]  # fmt: skip
ROWS = [(Int4Rows, "Q4_K"), (Int4Rows, "Q4_0"), (Int8Rows, "Q5_K"), (PlanesRows, "Q6_K")]
MATRICES = pytest.mark.parametrize(("layout", "type_name"), COLUMNS + ROWS)
EMBEDDINGS = pytest.mark.parametrize(("layout", "type_name"), ROWS)
EXPERTS = pytest.mark.parametrize(
    ("layout", "type_name"),
    [(GroupedInt4, "Q4_K"), (GroupedInt4, "Q4_0"), (GroupedNibblePlanes, "Q6_K"),
     (GroupedNibblePlanes, "Q8_0"), (GroupedWidePlanes, "Q8_0"), (GroupedWidePlanes, "Q5_K")],
)  # fmt: skip


def on_npu(
    layouts: type[Layout] | tuple[type[Layout], ...],
    type_name: str,
    dtype: torch.dtype = torch.float16,
    *shape: int,
) -> Layout:
    layouts = layouts if isinstance(layouts, tuple) else (layouts,)
    shape = shape or ((4, 48, 256) if issubclass(layouts[0], Grouped) else (48, 256))
    *experts, rows, cols = shape
    blocks, _ = random_blocks(np.random.default_rng(0), type_name, (*shape[:-1], cols))
    matrices = torch.from_numpy(blocks).view(-1, rows, blocks.shape[-1])
    ggml_type = GGMLQuantizationType[type_name]
    pieces = tuple(Piece(i, 0, 0, BlockTensor(m, ggml_type)) for i, m in enumerate(matrices))
    weight = Weight(experts[0] if experts else None, rows, cols, dtype, pieces)
    result = allocated(weight, layouts)
    for piece in pieces:
        result.put(piece)
    return result.to(torch.device("npu"))


def experts_kernel(layout: Layout):
    from ascend_gguf.srt.hardware_backend.npu.quantization.moe_methods import NPUGGUFMoEMethod

    return NPUGGUFMoEMethod(layout, None)


def assert_near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    limit = 0.002 if dtype == torch.float16 else 0.01
    assert (found.cpu().float() - expected).norm() <= limit * expected.norm()


@DTYPES
@MATRICES
def test_products(layout, type_name, dtype):
    weight = on_npu(layout, type_name, dtype, 64, 256)
    x, bias = torch.randn(2, 3, 256).to(dtype), torch.randn(64).to(dtype)
    expected = x.float() @ weight.dequantize().t()
    kernel = NPULinear()
    assert_near(kernel.linear(x.npu(), weight), expected, dtype)
    assert_near(kernel.linear(x.npu(), weight, bias.npu()), expected + bias.float(), dtype)
    assert kernel.linear(x[:0].npu(), weight).shape == (0, 3, 64)
    in_float32 = kernel.linear(x.float().npu(), weight)
    assert in_float32.dtype == torch.float32
    assert_near(in_float32, expected, dtype)


@DTYPES
@EMBEDDINGS
def test_rows_of_an_embedding(layout, type_name, dtype):
    weight = on_npu(layout, type_name, dtype, 64, 256)
    ids = torch.tensor([[3, 63], [0, 3]])
    found = NPUEmbedding().rows(weight, ids.npu())
    assert found.dtype == dtype and found.shape == (2, 2, 256)
    assert_near(found, weight.dequantize()[ids], dtype)


@pytest.mark.parametrize("layout", [Int4, Int4Rows])
def test_more_outputs_than_the_operator_takes(layout):
    from npu_sim.recorder import record

    weight = on_npu(layout, "Q4_0", torch.float16, 70016, 64)
    x = torch.randn(2, 64).half()
    with record(weights=list(weight.tensors.values())) as region:
        found = NPULinear().linear(x.npu(), weight)
    assert_near(found, x.float() @ weight.dequantize().t(), torch.float16)
    assert region.operators["aclnnWeightQuantBatchMatmulV2"] == 2
    assert region.weight_bytes == weight.nbytes  # each once
    if layout is Int4:
        return
    ids = torch.tensor([0, 35007, 35008, 70015])
    assert_near(NPUEmbedding().rows(weight, ids.npu()), weight.dequantize()[ids], torch.float16)


@DTYPES
@EXPERTS
def test_products_of_experts(layout, type_name, dtype):
    weight = on_npu(layout, type_name, dtype, 4, 32, 256)
    counts = torch.tensor([2, 0, 1, 3])
    x = torch.randn(7, 256).to(dtype)  # the last row is no expert's
    found = experts_kernel(weight).product(x.npu(), counts.npu())
    numbers = weight.dequantize()
    start = 0
    for expert, count in enumerate(counts.tolist()):
        rows = slice(start, start + count)
        if count:
            assert_near(found[rows], x[rows].float() @ numbers[expert].t(), dtype)
        start += count


@MATRICES
def test_nothing_of_it_is_left_to_the_host(layout, type_name):
    from npu_sim.recorder import record

    weight, kernel = on_npu(layout, type_name, torch.float16, 64, 256), NPUEmbedding()
    x, ids = torch.ones(2, 256, device="npu").half(), torch.tensor([1, 5], device="npu")

    def step():
        rows = kernel.rows(weight, ids) if isinstance(weight, RowGroups) else None
        return kernel.linear(x, weight), rows

    graph = torch.npu.NPUGraph()
    with torch.inference_mode():
        step()
        with torch.npu.graph(graph):
            y, rows = step()
    x.fill_(0.5)
    ids.fill_(7)
    with record() as region:
        graph.replay()
    assert not region.copies and region.graph_replays == 1
    expected = weight.dequantize()
    assert_near(y, 0.5 * expected.sum(1).expand(2, -1), torch.float16)
    if rows is not None:
        assert_near(rows, expected[[7, 7]], torch.float16)


@MATRICES
def test_weights_in_groups_are_not_transposed(layout, type_name):
    """As CANN recommends; but an embedding, whose rows are gathered, is a transposed view."""
    from npu_sim.recorder import record

    weight = on_npu(layout, type_name, torch.float16, 64, 256)
    x = torch.randn(2, 256).half().npu()
    with record(weights=list(weight.tensors.values())) as region:
        NPULinear().linear(x, weight)
    name = "aclnnWeightQuantBatchMatmulV2"
    by_rows = len(weight.tensors) if isinstance(weight, RowGroups) else 0
    assert region.operators[name] == 1 and region.weights_transposed[name] == by_rows
    assert region.launches == 1 + weight.packing.planes


@DTYPES
@MATRICES
def test_a_device_that_is_right_is_trusted(layout, type_name, dtype):
    weight = on_npu(layout, type_name, dtype, 64, 256)
    kernel = NPUEmbedding() if (layout, type_name) in ROWS else NPULinear()
    assert linear_mismatch(kernel, weight, isinstance(kernel, NPUEmbedding)) is None


@DTYPES
@EXPERTS
def test_experts_of_a_device_that_is_right_are_trusted(layout, type_name, dtype):
    weight = on_npu(layout, type_name, dtype, 4, 48, 256)
    assert experts_mismatch(experts_kernel(weight).product, weight) is None


#: Fault of a device, weights on it, and the layout that they get in the end.
FAULTY = [
    ("npu_weight_quant_batchmatmul:int4", Int4, "Q4_K", "int8"),
    ("npu_weight_quant_batchmatmul", Int4, "Q4_K", "dense"),
    ("npu_weight_quant_batchmatmul:int8", Int8, "Q5_K", "planes"),
    ("npu_weight_quant_batchmatmul:int8", RequantizedInt8, "Q6_K", "planes"),
    ("npu_weight_quant_batchmatmul", NibblePlanes, "Q2_K", "dense"),
    ("npu_grouped_matmul", GroupedInt4, "Q4_K", "dense"),
    ("npu_grouped_matmul:int4", GroupedNibblePlanes, "Q6_K", "dense"),
]
SAYS = {
    "wrong": "relative error 1",
    "refuse": "RuntimeError: EZ1001: {} is refused",
    "missing": "{0} or {0}GetWorkspaceSize not in libopapi.so",
}


@pytest.mark.parametrize("kind", faults.KINDS)
@pytest.mark.parametrize(("operator", "layout", "type_name", "served_by"), FAULTY)
def test_a_device_at_fault(monkeypatch, caplog, kind, operator, layout, type_name, served_by):
    is_linear = layout in NPULinear.layouts
    layouts = NPULinear.layouts if is_linear else EXPERT_LAYOUTS
    weight = on_npu((layout, *layouts[layouts.index(layout) + 1 :], Dense), type_name)
    numbers = weight.dequantize()
    monkeypatch.setenv(faults.VARIABLE, f"{kind}:{operator}")

    def mismatch(layout: Layout) -> str | None:
        if is_linear:
            return linear_mismatch(NPULinear(), layout, is_embedding=True)
        return experts_mismatch(experts_kernel(layout).product, layout)

    found = SelfCheck(lambda problem: None).settled(weight, mismatch)
    assert found.name == served_by and found.device.type == "npu"
    first = f"self-check failed for {layout.name} "
    said = SAYS[kind].format(operator.partition(":")[0])
    line = next(r.getMessage() for r in caplog.records if first in r.getMessage())
    assert line.startswith(f"falling back to {served_by} weights: ") and said in line
    assert (found.dequantize() - numbers).norm() <= 0.01 * numbers.norm()
    if not isinstance(found, Dense):
        x = torch.randn(3, 256).half()
        assert_near(NPULinear().linear(x.npu(), found), x.float() @ numbers.t(), torch.bfloat16)


def test_memory_that_ran_out_is_passed_on():
    def mismatch(layout: Layout) -> str | None:
        return str(torch.empty(1 << 40, dtype=torch.int8, device="npu").shape)

    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        SelfCheck(lambda problem: None).settled(on_npu((Int4, Dense), "Q4_K"), mismatch)


def _no_offset(w, scale, offset, group):
    return _right(w, scale, None, group)


def _offset_subtracted(w, scale, offset, group):
    return _right(w, scale, None if offset is None else -offset, group)


def _wrong_group(w, scale, offset, group):
    return _right(w, scale.flip(-2), offset, group)


def _nan(w, scale, offset, group):
    return _right(w, scale, offset, group) * torch.nan


def _right(w, scale, offset, group):
    from npu_sim.operators.antiquant import dequantise

    return dequantise(w, scale, offset, group)


@pytest.mark.parametrize("wrong", [_no_offset, _offset_subtracted, _wrong_group, _nan])
def test_a_device_that_is_wrong_is_not(monkeypatch, wrong):
    from npu_sim.operators import grouped_matmul, weight_quant_matmul

    monkeypatch.setattr(weight_quant_matmul, "dequantise", wrong)
    monkeypatch.setattr(grouped_matmul, "dequantise", wrong)
    matrix = on_npu(Int4, "Q4_1", torch.float16, 64, 256)
    problem = linear_mismatch(NPULinear(), matrix, is_embedding=False)
    assert problem.startswith("int4 64 x 256 in float16: relative error")
    experts = on_npu(GroupedNibblePlanes, "Q5_1", torch.bfloat16, 4, 48, 256)
    problem = experts_mismatch(experts_kernel(experts).product, experts)
    assert problem.startswith("planes, experts 4 x 48 x 256 in bfloat16: relative error")


@DTYPES
@pytest.mark.parametrize("own", [range(4), range(2), range(2, 4), range(3, 4)], ids=str)
def test_experts_of_one_rank_of_several(own, dtype):
    """Pairs of token and expert that are another rank's count nothing, even if all of them are."""
    from ascend_gguf.srt.layers.moe.token_dispatcher.ascend_tp import (
        OwnFinalizeRouting,
        OwnInitRouting,
    )

    x, matrices = torch.randn(3, 256).to(dtype), on_npu(GroupedInt4, "Q4_K", dtype, 4, 256, 256)
    ids = torch.tensor([[0, 2], [1, 0], [2, 1]], dtype=torch.int32)  # none of expert 3
    weights = torch.rand(3, 2).to(dtype)
    rows, places, counts, _ = OwnInitRouting(own)._init_routing(x.npu(), ids.npu(), 4, 2)
    assert counts.tolist() == [int((ids == expert).sum()) for expert in own]
    everyone = torch.zeros(4, dtype=torch.int64, device="npu")
    everyone[own.start : own.stop] = counts
    rows = experts_kernel(matrices).product(rows, everyone)
    finalize = OwnFinalizeRouting(drop_pad_mode=2)
    found = finalize._finalize_routing(rows, weights.npu(), places, ids.npu())
    dense = matrices.dequantize()
    expected = torch.zeros(3, 256)
    for token, pairs in enumerate(zip(ids.tolist(), weights.float(), strict=True)):
        for expert, weight in zip(*pairs, strict=True):
            if expert in own:
                expected[token] += weight * (dense[expert] @ x[token].float())
    if 3 in own and len(own) == 1:
        assert not found.cpu().any()
    else:
        assert_near(found, expected, dtype)
