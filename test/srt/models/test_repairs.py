"""The table of what is repaired in the engine's models, and biases as the file has them."""

from __future__ import annotations

import json
from importlib import import_module

import pytest
import torch

from ascend_gguf.architectures import Placement
from ascend_gguf.srt.model_loader.biases import fit_biases
from ascend_gguf.srt.models.deepseek_v2 import as_yarn
from ascend_gguf.srt.models.repairs import REPAIRS, REPLACED, engine_classes

CLASSES = pytest.mark.parametrize(("module", "cls"), engine_classes(), ids=[*REPLACED, *REPAIRS])


@CLASSES
def test_repaired_class_is_the_engines(module, cls):
    found = getattr(import_module(f"sglang.srt.{module}"), cls)
    assert f"{found.__module__}.{found.__qualname__}" == f"sglang.srt.{module}.{cls}"


@CLASSES
def test_repaired_class_is_the_engines_own(engine, module, cls):
    """With the patch: no method of a class that other models have, too, is hooked."""
    for base in getattr(import_module(f"sglang.srt.{module}"), cls).__mro__:
        for method in vars(base).values():
            code = getattr(getattr(method, "__func__", method), "__code__", None)
            assert code is None or not code.co_filename.endswith("hook_registry.py")
            assert not str(getattr(method, "__module__", "")).startswith("ascend_gguf")


#: Small safetensors models that the engine serves on the CPU, and what their configurations lack.
SAFETENSORS = {
    "cohere2": {},
    "gemma2": {"hidden_act": "gelu_pytorch_tanh"},
    "gemma3": {},
    "glm4moe": {},
    "granitemoe": {},
    "llama4": {},
    "minimax-m2": {"scoring_func": "sigmoid"},
    "mixtral": {},
    "phi3": {},
    "starcoder2": {},
}


def test_safetensors_models_of_repaired_classes_are_untouched(cpu_engine, tiny_model):
    loaded = set()
    for name, lacking in SAFETENSORS.items():
        options = {"json_model_override_args": json.dumps(lacking), "probe": "probes:whose"}
        with cpu_engine.load(tiny_model(name).hf, dtype="float32", **options) as model:
            (found,) = model.probes
        assert found["changed"] == [], name
        loaded |= {cls.removeprefix("sglang.srt.models.") for cls in found["classes"]}
    assert len(loaded & REPAIRS.keys()) >= 13
    ours = {"", "model.layers.0.self_attn", "runner", "sampler"}
    # Granite's is a module that a repair has made.
    for name, changed in ("gemma3", ours), ("granitemoe", {"model.layers.0.self_attn.rotary_emb"}):
        path = tiny_model(name).path
        with cpu_engine.load(path, dtype="float32", probe="probes:whose") as model:
            (found,) = model.probes
        assert changed <= set(found["changed"])


def _attention(bias: bool) -> torch.nn.Module:
    from sglang.srt.layers.linear import QKVParallelLinear, RowParallelLinear

    attention = torch.nn.Module()
    attention.qkv_proj = QKVParallelLinear(32, 8, 4, 2, bias=bias)
    attention.o_proj = RowParallelLinear(32, 32, bias=bias)
    return attention


@pytest.mark.parametrize("bias", [False, True])
def test_layers_have_the_biases_of_the_file(engine, one_rank, bias):
    attention = _attention(bias)
    fit_biases(attention, ["o_proj.weight", Placement(("q_proj.bias", "k_proj.bias"))])
    assert attention.o_proj.bias is None
    assert attention.qkv_proj.bias.shape == (64,)
    values = torch.arange(32.0)
    attention.qkv_proj.bias.weight_loader(attention.qkv_proj.bias, values, "q")
    assert torch.equal(attention.qkv_proj.bias[:32], values)


class _Config:
    max_position_embeddings = 1024

    def __init__(self, **parameters):
        self.rope_parameters = {"rope_theta": 10000.0, **parameters}


@pytest.mark.parametrize("factor", [1.0, 3.0, 4.0])
def test_linear_scaling_in_terms_of_yarn(engine, factor):
    """Sines and cosines of DeepSeek's YaRN are those of positions divided by the factor."""
    from sglang.srt.layers.rotary_embedding import get_rope_wrapper

    config = _Config(rope_type="linear", factor=factor)
    as_yarn(config)
    parameters = config.rope_parameters | {"rope_type": "deepseek_yarn"}
    rotary = get_rope_wrapper(64, 64, 1024, 10000.0, False, parameters, device="cpu")
    positions = torch.arange(1024.0) / factor
    angles = positions[:, None] * 10000.0 ** (-torch.arange(0, 64, 2) / 64)
    expected = torch.cat([angles.cos(), angles.sin()], dim=-1)
    torch.testing.assert_close(rotary.cos_sin_cache[:1024].float(), expected, atol=1e-4, rtol=0)
