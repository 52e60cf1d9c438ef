"""The engine's own layers, loaded with blocks by their own loaders, against the dense reference.

Needs no process group: the engine reads sizes and ranks from its context, which a test may set.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import numpy as np
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
from sglang.srt.layers.moe.topk import StandardTopKOutput
from sglang.srt.layers.quantization import gguf as engine_gguf
from sglang.srt.layers.quantization.gguf import GGUFConfig
from sglang.srt.layers.quantization.unquant import (
    UnquantizedEmbeddingMethod,
    UnquantizedFusedMoEMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from sglang.srt.model_loader.utils import set_default_torch_dtype
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookType
from sglang.srt.runtime_context import get_context, get_parallel

from ascend_gguf import GGUFError, load_config
from ascend_gguf.srt import plugin
from ascend_gguf.srt.layers.parameter import accept_blocks, block_names, stop_accepting_blocks
from ascend_gguf.srt.layers.quantization.gguf import (
    Choice,
    GGUFEmbeddingAscendMethod,
    GGUFLinearAscendMethod,
    GGUFMoEAscendMethod,
)
from ascend_gguf.srt.layers.quantization.unquant import Float32LinearMethod, keep_float32
from random_model import ALL_TYPES, random_blocks, write_model

HIDDEN = 256
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 32
EXPERTS, TOP_K = 4, 2
#: Types of plain numbers: they come under the name of the weight itself.
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
EVERY_TYPE = pytest.mark.parametrize("type_name", ALL_TYPES)


@pytest.fixture(scope="module", autouse=True)
def engine() -> Iterator[None]:
    """The engine with the patch, in this process, configured as for a small CPU server."""
    excepthook = sys.excepthook
    load_plugins()
    override = get_context().override_server_args(device="cpu")
    override.install()
    yield
    override.restore()
    sys.excepthook = excepthook


@contextlib.contextmanager
def ranks(tp: int = 1, rank: int = 0, ep: int = 1) -> Iterator[None]:
    """Layers made inside are those of one of ``tp`` ranks; their experts are shared by ``ep``."""
    moe_tp = tp // ep
    with get_parallel().override(
        tp_size=tp,
        tp_rank=rank,
        attn_tp_size=tp,
        attn_tp_rank=rank,
        attn_dp_rank=0,
        attn_cp_rank=0,
        moe_ep_size=ep,
        moe_ep_rank=rank // moe_tp,
        moe_tp_size=moe_tp,
        moe_tp_rank=rank % moe_tp,
    ):
        yield


@pytest.fixture(autouse=True)
def one_rank() -> Iterator[None]:
    with ranks():
        yield


@pytest.fixture
def other_device(monkeypatch) -> None:
    """As on a device that the patch does not serve."""
    monkeypatch.setattr(plugin, "uses_ascend_methods", lambda: False)


class Matrix:
    """A matrix as a file holds it, and its numbers."""

    def __init__(self, type_name: str, *shape: int, seed: int = 0) -> None:
        self.type_name = type_name
        blocks, values = random_blocks(np.random.default_rng(seed), type_name, shape)
        self.blocks, self.values = torch.from_numpy(blocks), torch.from_numpy(values)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What the iterator yields for it, in order: last part of the name to tensor."""
        if self.type_name in PLAIN:
            return {"weight": self.blocks.view(PLAIN[self.type_name])}
        ggml_type = GGMLQuantizationType[self.type_name]
        return {"qweight_type": torch.tensor(int(ggml_type)), "qweight": self.blocks}


def load(layer: torch.nn.Module, matrices: dict[Any, Matrix]) -> None:
    """All types, then all weights, each to its parameter's loader; keys are shards or None."""
    parameters = dict(layer.named_parameters())
    for types in (True, False):
        for shard, matrix in matrices.items():
            for name, tensor in matrix.tensors.items():
                if (name == "qweight_type") == types:
                    arguments = () if shard is None else (shard,)
                    parameters[name].weight_loader(parameters[name], tensor, *arguments)
    layer.quant_method.process_weights_after_loading(layer)


def numbers(layer: torch.nn.Module, name: str = "weight") -> torch.Tensor:
    """A loaded weight as it is held, or float32 where that is not as numbers."""
    if hasattr(layer, name):
        return getattr(layer, name).data
    method = layer.quant_method
    if name == "weight":
        form = method.weight
    else:
        form = getattr(method.experts, name.removesuffix("_weight"))
    assert {f"{name}_{part}" for part in form.tensors} <= dict(layer.named_parameters()).keys()
    return form.dequantize()


def assert_only_weights(layer: torch.nn.Module, **expected: torch.Tensor) -> None:
    """That nothing is left of what receives blocks, and every weight is right."""
    assert not [name for name, _ in layer.named_parameters() if "qweight" in name]
    for name, values in expected.items():
        found = numbers(layer, name)
        assert torch.equal(found, values.to(found.dtype))


def assert_only_weight(layer: torch.nn.Module, expected: torch.Tensor) -> None:
    assert_only_weights(layer, weight=expected)


def assert_near(ours: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal but for the order of float32 sums."""
    assert ours.shape == expected.shape
    assert (ours - expected).norm() <= 1e-5 * expected.norm()


# --- dispatch -------------------------------------------------------------------------------


def quantized_layers(config: GGUFConfig | None) -> dict[str, torch.nn.Module]:
    """A layer of each kind."""
    return {
        "linear": ReplicatedLinear(64, 64, False, quant_config=config, prefix="a.linear"),
        "row": RowParallelLinear(64, 64, False, quant_config=config, prefix="a.row"),
        "qkv": QKVParallelLinear(64, 16, 4, 2, False, quant_config=config, prefix="a.qkv"),
        "embedding": VocabParallelEmbedding(64, 64, quant_config=config, prefix="a.embedding"),
        "head": ParallelLMHead(64, 64, quant_config=config, prefix="a.head"),
        "experts": FusedMoE(4, 64, 64, 0, top_k=2, quant_config=config, prefix="a.experts"),
    }


ASCEND = {
    "linear": GGUFLinearAscendMethod,
    "row": GGUFLinearAscendMethod,
    "qkv": GGUFLinearAscendMethod,
    "embedding": GGUFEmbeddingAscendMethod,
    "head": GGUFEmbeddingAscendMethod,
    "experts": GGUFMoEAscendMethod,
}
UNQUANTIZED = {
    "linear": UnquantizedLinearMethod,
    "row": UnquantizedLinearMethod,
    "qkv": UnquantizedLinearMethod,
    "embedding": UnquantizedEmbeddingMethod,
    "head": UnquantizedEmbeddingMethod,
    "experts": UnquantizedFusedMoEMethod,
}


def method_types(layers: dict[str, torch.nn.Module]) -> dict[str, type]:
    return {name: type(layer.quant_method) for name, layer in layers.items()}


def test_layers_get_the_ascend_methods():
    config = GGUFConfig()
    layers = quantized_layers(config)
    assert method_types(layers) == ASCEND
    assert all(layer.quant_method.quant_config is config for layer in layers.values())
    assert config.get_quant_method(torch.nn.Linear(4, 4), "a") is None


def test_engine_names_are_the_ascend_methods():
    for method in set(ASCEND.values()):
        assert getattr(engine_gguf, method.__name__) is method


@pytest.mark.parametrize("skipped", [["a."], list(ASCEND)], ids=["prefix", "names"])
def test_modules_to_not_convert(skipped):
    assert method_types(quantized_layers(GGUFConfig(skipped))) == UNQUANTIZED


@pytest.mark.parametrize("name", ASCEND)
def test_one_module_to_not_convert(name):
    expected = ASCEND | {name: UNQUANTIZED[name]}
    assert method_types(quantized_layers(GGUFConfig([f"a.{name}"]))) == expected


def test_other_device_gets_what_the_engine_gives(other_device):
    original = GGUFConfig.get_quant_method.__wrapped__
    layers = quantized_layers(None)
    for config in (GGUFConfig(), GGUFConfig(["a.linear", "a.embedding", "a.experts"])):
        for name, layer in layers.items():
            ours = config.get_quant_method(layer, f"a.{name}")
            theirs = original(config, layer, f"a.{name}")
            assert type(ours) is type(theirs) not in ASCEND.values()
            assert vars(ours).keys() == vars(theirs).keys()
            assert getattr(ours, "quant_config", config) is config
        assert config.get_quant_method(torch.nn.Linear(4, 4), "a") is None
    # What 0.5.23 gives, so that a change of the above comparison's both sides shows.
    given = {name: type(GGUFConfig().get_quant_method(x, name)) for name, x in layers.items()}
    assert {kind.__name__ for kind in given.values()} == {
        "GGUFLinearMethod",
        "GGUFEmbeddingMethod",
        "GGUFMoEMethod",
    }


ASIDE = [hook for hook in plugin._HOOKS if hook[2] is not HookType.REPLACE]


@pytest.mark.parametrize("hook", ASIDE, ids=lambda hook: hook[1])
def test_hooks_step_aside_on_other_devices(hook, other_device):
    module, target, kind, name = hook
    function = getattr(
        import_module(f"ascend_gguf.srt.{module}"), name or target.rpartition(".")[2]
    )
    calls = []

    def original(*args, **kwargs):
        calls.append((args, kwargs))
        return answer

    answer, first, second = object(), object(), object()
    hooked = plugin.where_served(function, kind)
    if kind is HookType.AFTER:
        assert hooked(answer, first, named=second) is None
    else:
        assert hooked(original, first, named=second) is answer
        assert calls == [((first,), {"named": second})]


def test_loader_on_other_devices_is_the_engines(other_device):
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader.loader import GGUFModelLoader

    options = {"modules_to_not_convert": ["lm_head"]}
    with pytest.raises(ValueError, match="extra config is not supported"):
        GGUFModelLoader(LoadConfig(model_loader_extra_config=options))
    GGUFModelLoader(LoadConfig())


def test_options_of_the_loader():
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader.loader import GGUFModelLoader

    options = {"modules_to_not_convert": ["lm_head"], "weights": "packed", "on_mismatch": "stop"}
    loader = GGUFModelLoader(LoadConfig(model_loader_extra_config=options))
    assert loader.options == options
    assert GGUFModelLoader(LoadConfig()).options == {}
    for wrong in ({"modules_to_not_convert": "lm_head"}, {"no_such_option": []}):
        with pytest.raises(GGUFError, match=r"no such option.*modules_to_not_convert: list"):
            GGUFModelLoader(LoadConfig(model_loader_extra_config=wrong))
    for wrong in ({"weights": "int4"}, {"weights": True}, {"on_mismatch": "go on"}):
        values = r"weights: auto or packed or dense, on_mismatch: dense or stop"
        with pytest.raises(GGUFError, match=values):
            GGUFModelLoader(LoadConfig(model_loader_extra_config=wrong))


# --- dense layers ---------------------------------------------------------------------------

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


def test_placeholders_before_loading():
    layer = ReplicatedLinear(HIDDEN, 64, False, quant_config=GGUFConfig(), prefix="m")
    parameters = dict(layer.named_parameters())
    assert set(parameters) == {"weight", *block_names("weight")}
    assert parameters["qweight"].numel() == parameters["qweight_type"].numel() == 0
    assert parameters["weight"].shape == (64, HIDDEN)


def test_matrix_of_another_shape_is_refused():
    layer = ReplicatedLinear(HIDDEN, 64, False, quant_config=GGUFConfig(), prefix="m")
    for rows, cols in ((63, HIDDEN), (64, 2 * HIDDEN)):
        with pytest.raises(AssertionError):
            load(layer, {None: Matrix("Q8_0", rows, cols)})


def test_quantized_router():
    """A layer that the model leaves unquantized may come as blocks all the same."""
    matrix = Matrix("Q8_0", 8, HIDDEN)
    layer = ReplicatedLinear(HIDDEN, 8, False, prefix="gate")
    accept_blocks(layer)
    load(layer, {None: matrix})
    assert {"qweight", "qweight_type"} < dict(layer.named_parameters()).keys()
    stop_accepting_blocks(layer)
    assert_only_weight(layer, matrix.values)
    stop_accepting_blocks(layer)  # nothing is left to remove


# --- experts --------------------------------------------------------------------------------

SHARDS = {"w1": "w13", "w2": "w2", "w3": "w13"}
#: One type for each expert and projection, plain ones among them.
EXPERT_TYPES = {
    (expert, shard): ALL_TYPES[(7 * i) % len(ALL_TYPES)]
    for i, (expert, shard) in enumerate(itertools.product(range(EXPERTS), SHARDS))
}
FFN = 256  # half of it is no boundary of a 256-wide block


def expert_matrices(types: dict[tuple[int, str], str]) -> dict[tuple[int, str], Matrix]:
    return {
        key: Matrix(name, *((HIDDEN, FFN) if key[1] == "w2" else (FFN, HIDDEN)), seed=i)
        for i, (key, name) in enumerate(types.items())
    }


def make_experts(weights: str = "auto", **options: Any) -> FusedMoE:
    config = GGUFConfig()
    config.choice = Choice(weights)
    return FusedMoE(
        EXPERTS,
        HIDDEN,
        FFN,
        0,
        top_k=TOP_K,
        quant_config=config,
        prefix="model.layers.0.mlp.experts",
        **options,
    )


def load_experts(layer: FusedMoE, matrices: dict[tuple[int, str], Matrix]) -> None:
    """As the models do it: every expert is offered to every rank."""
    parameters = dict(layer.named_parameters())
    for types in (True, False):
        for (expert, shard), matrix in matrices.items():
            for suffix, tensor in matrix.tensors.items():
                if (suffix == "qweight_type") == types:
                    name = f"{SHARDS[shard]}_{suffix}"
                    parameters[name].weight_loader(
                        parameters[name], tensor, f"experts.{name}", shard, expert
                    )


def dense_experts(
    matrices: dict[tuple[int, str], Matrix],
) -> tuple[torch.Tensor, torch.Tensor]:
    w13 = [torch.cat([matrices[e, "w1"].values, matrices[e, "w3"].values]) for e in range(EXPERTS)]
    return torch.stack(w13), torch.stack([matrices[e, "w2"].values for e in range(EXPERTS)])


def routing(tokens: int) -> StandardTopKOutput:
    logits = torch.randn(tokens, EXPERTS, generator=torch.Generator().manual_seed(1))
    weights, ids = logits.softmax(-1).topk(TOP_K)
    return StandardTopKOutput(weights, ids.to(torch.int32), logits)


def run_experts(layer: FusedMoE, x: torch.Tensor, top_k: StandardTopKOutput) -> torch.Tensor:
    """This rank's share of the output, before the all-reduce."""
    dispatched = layer.dispatcher.dispatch(hidden_states=x.clone(), topk_output=top_k)
    return layer.run_moe_core(dispatched).hidden_states


def mixture(
    x: torch.Tensor, w13: torch.Tensor, w2: torch.Tensor, top_k: StandardTopKOutput
) -> torch.Tensor:
    out = torch.zeros_like(x)
    for token, (weights, ids) in enumerate(zip(top_k.topk_weights, top_k.topk_ids, strict=True)):
        for weight, expert in zip(weights, ids.tolist(), strict=True):
            gate, up = (w13[expert] @ x[token]).chunk(2)
            out[token] += weight * (w2[expert] @ (F.silu(gate) * up))
    return out


ORDERS = {"as in the table": list, "reversed": lambda items: list(items)[::-1]}


def test_types_of_experts_differ():
    assert len(set(EXPERT_TYPES.values())) == len(EXPERT_TYPES) == 12
    assert set(PLAIN) & set(EXPERT_TYPES.values())


@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_experts_of_any_types(order):
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts()
    load_experts(layer, dict(order(matrices.items())))
    layer.quant_method.process_weights_after_loading(layer)
    w13, w2 = dense_experts(matrices)
    assert_only_weights(layer, w13_weight=w13, w2_weight=w2)
    x, top_k = 0.1 * torch.randn(5, HIDDEN), routing(5)
    assert_near(run_experts(layer, x, top_k), mixture(x, w13, w2, top_k))


@EVERY_TYPE
@pytest.mark.parametrize("weights", ["auto", "dense"])
def test_experts_of_one_type(type_name, weights):
    matrices = expert_matrices(dict.fromkeys(EXPERT_TYPES, type_name))
    layer = make_experts(weights, params_dtype=torch.bfloat16)
    load_experts(layer, matrices)
    layer.quant_method.process_weights_after_loading(layer)
    w13, w2 = dense_experts(matrices)
    assert_only_weights(layer, w13_weight=w13, w2_weight=w2)


@pytest.mark.parametrize(("tp", "ep"), [(2, 1), (4, 1), (2, 2), (4, 2)])
def test_experts_on_several_ranks(tp, ep):
    """Gate and up are cut along the output, down along the input; ranks sum to the whole, once."""
    matrices = expert_matrices(EXPERT_TYPES)
    w13, w2 = dense_experts(matrices)
    x, top_k = 0.1 * torch.randn(5, HIDDEN), routing(5)
    total = torch.zeros_like(x)
    moe_tp = tp // ep
    for rank in range(tp):
        with ranks(tp, rank, ep):
            layer = make_experts()
            load_experts(layer, matrices)
            layer.quant_method.process_weights_after_loading(layer)
            local = slice(rank // moe_tp * EXPERTS // ep, (rank // moe_tp + 1) * EXPERTS // ep)
            ffn = FFN // moe_tp
            cut = slice(rank % moe_tp * ffn, (rank % moe_tp + 1) * ffn)
            gate, up = w13.chunk(2, dim=1)
            expected = torch.cat([gate[local, cut], up[local, cut]], dim=1)
            assert_only_weights(layer, w13_weight=expected, w2_weight=w2[local, :, cut])
            total += run_experts(layer, x, top_k)
    assert_near(total, mixture(x, w13, w2, top_k))


def test_input_of_experts_is_not_written():
    layer = make_experts()
    load_experts(layer, expert_matrices(EXPERT_TYPES))
    layer.quant_method.process_weights_after_loading(layer)
    x = torch.randn(5, HIDDEN)
    before = x.clone()
    dispatched = layer.dispatcher.dispatch(hidden_states=x, topk_output=routing(5))
    layer.run_moe_core(dispatched)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("shard", "projection"), [("w1", "gate"), ("w2", "down"), ("w3", "up")], ids=str
)
@pytest.mark.parametrize("expert", range(EXPERTS))
def test_missing_expert_is_named(shard, projection, expert):
    matrices = expert_matrices(EXPERT_TYPES)
    del matrices[expert, shard]
    layer = make_experts()
    load_experts(layer, matrices)
    with pytest.raises(GGUFError, match=rf"the {projection} projection of local expert {expert} "):
        layer.quant_method.process_weights_after_loading(layer)
    with pytest.raises(GGUFError, match=r"model\.layers\.0\.mlp\.experts was not loaded"):
        layer.materialize_gguf_weights()


def test_type_without_blocks_does_not_count():
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts()
    load_experts(layer, matrices)
    layer.quant_method.loaded.discard((2, "w2"))
    parameter = layer.w2_qweight_type
    parameter.weight_loader(parameter, torch.tensor(12), "experts.w2_qweight_type", "w2", 2)
    with pytest.raises(GGUFError, match="down projection of local expert 2"):
        layer.materialize_gguf_weights()


def test_experts_of_other_ranks_are_not_missed():
    matrices = expert_matrices(EXPERT_TYPES)
    with ranks(2, 1, ep=2):
        layer = make_experts()
        load_experts(layer, {key: matrix for key, matrix in matrices.items() if key[0] >= 2})
        layer.materialize_gguf_weights()
        del matrices[3, "w3"]
        layer = make_experts()
        load_experts(layer, matrices)
        with pytest.raises(GGUFError, match="up projection of local expert 1 "):
            layer.materialize_gguf_weights()


def test_biases_of_experts_are_the_engines_affair():
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts(with_bias=True)
    load_experts(layer, matrices)
    for name, bias in (("w13", layer.w13_weight_bias), ("w2", layer.w2_weight_bias)):
        shard = {"w13": "w1", "w2": "w2"}[name]
        assert layer._load_gguf_weight(bias, torch.zeros(bias.shape[1]), shard, 0) is False
    layer.w13_weight_bias.data.normal_()
    layer.w2_weight_bias.data.normal_()
    layer.quant_method.process_weights_after_loading(layer)
    x = 0.1 * torch.randn(1, HIDDEN)
    top_k = StandardTopKOutput(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.int32), object())
    w13, w2 = dense_experts(matrices)
    gate, up = F.linear(x, w13[1], layer.w13_weight_bias[1]).chunk(2, dim=-1)
    expected = F.linear(F.silu(gate) * up, w2[1], layer.w2_weight_bias[1])
    assert_near(run_experts(layer, x, top_k), expected)


def test_router_weights_on_the_input():
    matrices = expert_matrices(EXPERT_TYPES)
    layer = make_experts(apply_router_weight_on_input=True)
    load_experts(layer, matrices)
    layer.quant_method.process_weights_after_loading(layer)
    x, weight = torch.randn(1, HIDDEN), torch.full((1, 1), 0.25)
    top_k = StandardTopKOutput(weight, torch.ones(1, 1, dtype=torch.int32), object())
    whole = top_k._replace(topk_weights=torch.ones(1, 1))
    expected = mixture(0.25 * x, *dense_experts(matrices), whole)
    assert_near(run_experts(layer, x, top_k), expected)


@pytest.mark.parametrize(
    "options",
    [{"activation": "relu2"}, {"gemm1_alpha": 1.7}, {"swiglu_limit": 7.0}, {"is_gated": False}],
    ids=str,
)
def test_activation_that_nobody_implemented(options):
    """A wrong activation would give wrong numbers, not an error."""
    layer = make_experts(**options)
    x = torch.randn(1, HIDDEN)
    with pytest.raises(NotImplementedError, match=r"activation '\w+'.*not supported on the CPU"):
        run_experts(layer, x, routing(1))


def test_other_methods_keep_the_engines_loader():
    layer = FusedMoE(EXPERTS, HIDDEN, FFN, 0, top_k=TOP_K, prefix="m")
    weight = layer.w13_weight
    assert layer._load_gguf_weight(weight, torch.zeros(FFN, HIDDEN), "w1", 0) is False
    layer.materialize_gguf_weights()  # nothing is missed where nothing is GGUF


# --- decoding on the device -----------------------------------------------------------------


@EVERY_TYPE
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_ggml_dequantize_ascend(type_name, dtype):
    matrix = Matrix(type_name, 6, 512)
    ggml_type = GGMLQuantizationType[type_name]
    for blocks in (matrix.blocks, matrix.blocks.flatten(), matrix.blocks.view(2, 3, -1)):
        numbers = engine_gguf.ggml_dequantize_ascend(blocks, ggml_type, 6, 512, dtype)
        assert numbers.dtype is dtype
        assert numbers.device == blocks.device
        assert torch.equal(numbers, matrix.values.to(dtype))
    reshaped = engine_gguf.ggml_dequantize_ascend(matrix.blocks, int(ggml_type), 12, 256, dtype)
    assert torch.equal(reshaped, matrix.values.to(dtype).view(12, 256))
    strided = torch.stack([matrix.blocks, matrix.blocks], dim=1)[:, 0]
    numbers = engine_gguf.ggml_dequantize_ascend(strided, ggml_type, 6, 512, dtype)
    assert torch.equal(numbers, matrix.values.to(dtype))


@pytest.mark.parametrize(("rows", "cols"), [(6, 256), (7, 512), (5, 512), (0, 0)])
def test_ggml_dequantize_ascend_of_another_size(rows, cols):
    blocks = Matrix("Q4_K", 6, 512).blocks
    with pytest.raises(ValueError, match=rf"hold 3072 weights, not {rows} x {cols}"):
        engine_gguf.ggml_dequantize_ascend(blocks, 12, rows, cols, torch.float32)


def test_ggml_dequantize_ascend_of_nonsense():
    blocks = Matrix("Q4_K", 6, 512).blocks
    with pytest.raises(GGUFError, match="unknown block type"):
        engine_gguf.ggml_dequantize_ascend(blocks, 99, 6, 512, torch.float32)
    with pytest.raises(GGUFError, match="whole number of Q4_K blocks"):
        engine_gguf.ggml_dequantize_ascend(blocks.flatten()[:-1], 12, 6, 512, torch.float32)


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


# --- models ---------------------------------------------------------------------------------


def sparse_block(tmp_path, **changes: Any) -> torch.nn.Module:
    from sglang.srt.models.qwen3_moe import Qwen3MoeSparseMoeBlock

    config = load_config(write_model(tmp_path / "m.gguf", arch="qwen3moe").path)
    for name, value in changes.items():
        setattr(config, name, value)
    return Qwen3MoeSparseMoeBlock(0, config, GGUFConfig(), prefix="model.layers.0.mlp")


@pytest.mark.parametrize("renormalize", [True, False])
def test_qwen3_moe_renormalises_as_its_configuration_says(renormalize, tmp_path):
    block = sparse_block(tmp_path, norm_topk_prob=renormalize)
    assert block.topk.topk_config.renormalize is renormalize
    assert type(block.experts.quant_method) is GGUFMoEAscendMethod


def test_qwen3_moe_on_other_devices_is_the_engines(tmp_path, other_device):
    assert sparse_block(tmp_path, norm_topk_prob=True).topk.topk_config.renormalize is False


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.bfloat16,
    ],
    ids=str,
)
def test_gate_of_the_shared_expert(dtype):
    from sglang.srt.models import qwen2_moe

    g = torch.Generator().manual_seed(0)
    x, shared, out = (torch.randn(50, HIDDEN, generator=g).to(dtype) for _ in range(3))
    gate = (0.1 * torch.randn(HIDDEN, generator=g)).to(dtype)
    scale = torch.sigmoid(x.double() @ gate.double())[:, None]
    expected = out.double() + scale * shared.double()
    rounded = expected.to(dtype).double()
    assert qwen2_moe.fused_gate_sigmoid_mul_add(x, gate, shared, out) is None
    # At most as far away as the nearest number, or by what float32 arithmetic adds.
    assert ((out - expected).abs() <= (rounded - expected).abs() + 1e-5).all()
