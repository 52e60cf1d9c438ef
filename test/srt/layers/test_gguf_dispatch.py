"""Which layers get the Ascend methods, and that other devices keep the engine's own."""

from __future__ import annotations

from importlib import import_module

import pytest
import torch
from sglang.srt.layers.linear import (
    QKVParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from sglang.srt.layers.moe.fused_moe_triton import FusedMoE
from sglang.srt.layers.quantization.gguf import GGUFConfig
from sglang.srt.layers.quantization.unquant import (
    UnquantizedEmbeddingMethod,
    UnquantizedFusedMoEMethod,
    UnquantizedLinearMethod,
)
from sglang.srt.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from ascend_gguf import GGUFError
from ascend_gguf.srt import plugin
from ascend_gguf.srt.layers.quantization.gguf import (
    GGUFEmbeddingAscendMethod,
    GGUFLinearAscendMethod,
    GGUFMoEAscendMethod,
)

pytestmark = pytest.mark.usefixtures("engine", "one_rank")


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


@pytest.mark.parametrize("hook", plugin.HOOKS + plugin.SERVER_HOOKS, ids=lambda hook: hook[1])
def test_hooks_step_aside_on_other_devices(hook, other_device):
    module, target, name = hook
    function = getattr(
        import_module(f"ascend_gguf.srt.{module}"), name or target.rpartition(".")[2]
    )
    calls = []

    def original(*args, **kwargs):
        calls.append((args, kwargs))
        return answer

    answer, first, second = object(), object(), object()
    hooked = plugin.where_served(function)
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
        values = r"weights: auto or packed or int8 or dense, on_mismatch: dense or stop"
        with pytest.raises(GGUFError, match=values):
            GGUFModelLoader(LoadConfig(model_loader_extra_config=wrong))
