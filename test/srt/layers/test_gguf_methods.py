"""The engine's own layers of a matrix or several, loaded with blocks, against the reference."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from gguf import GGMLQuantizationType
from sglang.srt.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.quantization.gguf import GGUFConfig
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_loader.utils import set_default_torch_dtype

from ascend_gguf.npu.choice import Choice
from ascend_gguf.srt.layers.quantization.gguf import ggml_dequantize_ascend
from ascend_gguf.srt.layers.quantization.unquant import Float32LinearMethod, keep_float32
from ascend_gguf.weights.pending import PendingWeight
from srt.engine_layers import (
    EVERY_TYPE,
    EXPERTS,
    HEAD_SIZE,
    HEADS,
    HIDDEN,
    KV_HEADS,
    Matrix,
    assert_near,
    assert_only_weight,
    load,
    numbers,
    ranks,
)

pytestmark = pytest.mark.usefixtures("engine", "one_rank")

QKV_TYPES = [
    ("F16", "Q4_K", "F32"),
    ("Q4_K", "Q4_K", "Q4_K"),
    ("IQ2_XXS", "Q8_0", "BF16"),
    ("F32", "F32", "F32"),
    ("TQ1_0", "NVFP4", "MXFP4"),
]


def qkv(types: tuple[str, ...], cols: int = HIDDEN) -> dict[str, Matrix]:
    rows = (HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE)
    return {
        shard: Matrix(type_name, n, cols, seed=i)
        for i, (shard, type_name, n) in enumerate(zip("qkv", types, rows, strict=True))
    }


def stacked(matrices: dict[Any, Matrix]) -> torch.Tensor:
    """In logical order: that of the shards' names or numbers."""
    order = sorted(matrices, key=lambda shard: "qkv".index(shard) if shard in "qkv" else shard)
    return torch.cat([matrices[shard].values for shard in order])


@pytest.mark.parametrize("order", list(itertools.permutations("qkv")), ids="".join)
@pytest.mark.parametrize("types", QKV_TYPES, ids="-".join)
def test_qkv_stand_in_logical_order(order, types):
    matrices = qkv(types)
    layer = QKVParallelLinear(
        HIDDEN, HEAD_SIZE, HEADS, KV_HEADS, False, quant_config=GGUFConfig(), prefix="qkv"
    )
    load(layer, {shard: matrices[shard] for shard in order})
    expected = stacked(matrices)
    assert_only_weight(layer, expected)
    x = torch.randn(3, HIDDEN)
    assert_near(layer(x)[0], x @ expected.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=str)
@pytest.mark.parametrize("types", [("F16", "Q4_K"), ("Q5_1", "F32"), ("BF16", "IQ1_S")])
@pytest.mark.parametrize("weights", ["auto", "dense"])
def test_gate_and_up_stand_in_logical_order(weights, dtype, order, types):
    matrices = {i: Matrix(name, 96, HIDDEN, seed=i) for i, name in enumerate(types)}
    config = GGUFConfig()
    config.choice = Choice(weights)
    layer = MergedColumnParallelLinear(
        HIDDEN, [96, 96], False, params_dtype=dtype, quant_config=config, prefix="gate_up"
    )
    load(layer, {i: matrices[i] for i in order})
    expected = torch.cat([matrices[0].values, matrices[1].values])
    assert (layer.weight if weights == "dense" else layer.quant_method.weight).dtype is dtype
    assert_only_weight(layer, expected)


@EVERY_TYPE
@pytest.mark.parametrize("kind", [ReplicatedLinear, ColumnParallelLinear, RowParallelLinear])
def test_layers_of_one_matrix(type_name, kind):
    matrix = Matrix(type_name, 64, 512)
    layer = kind(512, 64, True, quant_config=GGUFConfig(), prefix="m")
    bias = torch.randn(64)
    layer.bias.weight_loader(layer.bias, bias)
    load(layer, {None: matrix})
    assert_only_weight(layer, matrix.values)
    x = torch.randn(3, 512)
    assert_near(layer.quant_method.apply(layer, x, layer.bias), F.linear(x, matrix.values, bias))


@EVERY_TYPE
@pytest.mark.parametrize("kind", [VocabParallelEmbedding, ParallelLMHead])
def test_embedding(type_name, kind):
    """300 tokens are padded to a multiple of 64 with zeros."""
    matrix = Matrix(type_name, 300, HIDDEN)
    layer = kind(300, HIDDEN, quant_config=GGUFConfig(), prefix="m")
    load(layer, {None: matrix})
    assert_only_weight(layer, F.pad(matrix.values, (0, 0, 0, 20)))
    tokens = torch.tensor([[0, 299], [17, 5]])
    assert torch.equal(layer.quant_method.embedding(layer, tokens), matrix.values[tokens])
    x = torch.randn(3, HIDDEN)
    assert_near(layer.quant_method.apply(layer, x)[:, :300], x @ matrix.values.T)


def test_logits_are_not_rounded():
    matrix = Matrix("Q4_K", 64, HIDDEN)
    with set_default_torch_dtype(torch.bfloat16):
        layer = ParallelLMHead(64, HIDDEN, quant_config=GGUFConfig(), prefix="m")
    load(layer, {None: matrix})
    x = torch.randn(3, HIDDEN).bfloat16()
    logits = layer.quant_method.apply(layer, x)
    assert logits.dtype is torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


@EVERY_TYPE
def test_columns_are_cut_inside_blocks(type_name):
    """768 inputs in two: 384 is no boundary of a 256-wide block; ranks sum to the whole."""
    matrix = Matrix(type_name, 64, 768)
    x = torch.randn(3, 768)
    total = torch.zeros(3, 64)
    for rank in range(2):
        with ranks(2, rank):
            layer = RowParallelLinear(768, 64, False, quant_config=GGUFConfig(), prefix="m")
            load(layer, {None: matrix})
            part = slice(384 * rank, 384 * (rank + 1))
            assert_only_weight(layer, matrix.values[:, part])
            total += layer.quant_method.apply(layer, x[:, part])
    assert_near(total, x @ matrix.values.T)


def test_block_of_columns_smaller_than_a_block():
    """256 inputs on 4 ranks: a quarter of one Q4_K block each."""
    matrix = Matrix("Q4_K", 64, 256)
    for rank in range(4):
        with ranks(4, rank):
            layer = RowParallelLinear(256, 64, False, quant_config=GGUFConfig(), prefix="m")
            load(layer, {None: matrix})
            assert_only_weight(layer, matrix.values[:, 64 * rank : 64 * (rank + 1)])


@pytest.mark.parametrize("types", QKV_TYPES, ids="-".join)
@pytest.mark.parametrize("tp", [2, 4])  # 4 ranks hold two copies of each of the 2 key heads
def test_qkv_on_several_ranks(types, tp):
    matrices = qkv(types)
    q = HEADS * HEAD_SIZE // tp
    kv, copies = max(1, KV_HEADS // tp) * HEAD_SIZE, max(1, tp // KV_HEADS)
    for rank in range(tp):
        with ranks(tp, rank):
            layer = QKVParallelLinear(
                HIDDEN, HEAD_SIZE, HEADS, KV_HEADS, False, quant_config=GGUFConfig(), prefix="m"
            )
            load(layer, {shard: matrices[shard] for shard in "vqk"})
            first = rank // copies * kv
            expected = torch.cat(
                [
                    matrices["q"].values[rank * q : (rank + 1) * q],
                    matrices["k"].values[first : first + kv],
                    matrices["v"].values[first : first + kv],
                ]
            )
            assert_only_weight(layer, expected)


def test_embedding_on_two_ranks():
    matrix = Matrix("Q6_K", 300, HIDDEN)
    padded = F.pad(matrix.values, (0, 0, 0, 84))
    for rank in range(2):
        with ranks(2, rank):
            layer = VocabParallelEmbedding(300, HIDDEN, quant_config=GGUFConfig(), prefix="m")
            load(layer, {None: matrix})
            rows = len(numbers(layer))
            assert_only_weight(layer, padded[rank * rows : (rank + 1) * rows])


def test_parameter_before_loading():
    layer = ReplicatedLinear(HIDDEN, 64, False, quant_config=GGUFConfig(), prefix="m")
    ((name, weight),) = layer.named_parameters()
    assert (name, weight.shape) == ("weight", (64, HIDDEN))
    assert isinstance(weight, PendingWeight)  # without memory


def test_matrix_of_another_shape_is_refused():
    layer = ReplicatedLinear(HIDDEN, 64, False, quant_config=GGUFConfig(), prefix="m")
    for rows, cols in ((63, HIDDEN), (64, 2 * HIDDEN)):
        with pytest.raises(AssertionError):
            load(layer, {None: Matrix("Q8_0", rows, cols)})


def test_quantized_router():
    """A layer that the model leaves unquantized may come as blocks all the same."""
    matrix = Matrix("Q8_0", 8, HIDDEN)
    layer = ReplicatedLinear(HIDDEN, 8, False, prefix="gate")
    load(layer, {None: matrix})
    assert_only_weight(layer, matrix.values)


# --- routers --------------------------------------------------------------------------------


def test_router_in_float32():
    layer = ReplicatedLinear(HIDDEN, 8, True, params_dtype=torch.bfloat16, prefix="gate")
    loader = layer.weight.weight_loader
    keep_float32(layer)
    assert type(layer.quant_method) is Float32LinearMethod
    assert layer.weight.dtype is torch.float32
    assert layer.weight.weight_loader == loader
    assert not layer.weight.requires_grad
    weight = torch.randn(8, HIDDEN)
    layer.weight.weight_loader(layer.weight, weight)
    layer.bias.data.zero_()
    layer.quant_method.process_weights_after_loading(layer)
    assert torch.equal(layer.weight.data, weight)  # not rounded
    x = torch.randn(3, HIDDEN, dtype=torch.bfloat16)
    logits, _ = layer(x)
    assert logits.dtype is torch.float32
    assert_near(logits, x.float() @ weight.T)


class _Special(ReplicatedLinear):
    pass


@pytest.mark.parametrize(
    "make",
    [
        lambda: ReplicatedLinear(64, 8, False, quant_config=GGUFConfig(), prefix="m"),
        lambda: _Special(64, 8, False, prefix="m"),
        lambda: ColumnParallelLinear(64, 8, False, prefix="m"),
        lambda: VocabParallelEmbedding(64, 8, prefix="m"),
        lambda: FusedMoE(EXPERTS, 64, 64, 0, top_k=2, prefix="m"),
        lambda: torch.nn.Linear(64, 8),
    ],
    ids=["GGUF", "subclass", "column", "embedding", "experts", "torch"],
)
def test_other_layers_stay_as_they_are(make):
    layer = make()
    method = getattr(layer, "quant_method", None)
    before = {name: (id(p), p.dtype) for name, p in layer.named_parameters()}
    keep_float32(layer)
    assert getattr(layer, "quant_method", None) is method
    assert {name: (id(p), p.dtype) for name, p in layer.named_parameters()} == before


@EVERY_TYPE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ggml_dequantize_ascend(type_name, dtype):
    matrix = Matrix(type_name, 6, 512)
    ggml_type = GGMLQuantizationType[type_name]
    for blocks in (matrix.blocks, matrix.blocks.flatten(), matrix.blocks.view(2, 3, -1)):
        weights = ggml_dequantize_ascend(blocks, ggml_type, 6, 512, dtype)
        assert weights.dtype is dtype
        assert torch.equal(weights, matrix.values.to(dtype))
    with pytest.raises(ValueError, match="hold 3072 weights, not 7 x 512"):
        ggml_dequantize_ascend(matrix.blocks, ggml_type, 7, 512, dtype)
