"""Embeddings, output matrices and attention stay packed, whatever a model's class says."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gguf import GGMLQuantizationType as Type

from ascend_gguf import open_gguf
from engine_process import EngineProcess
from hf_models import TINY, Written, write_model
from random_model import PROMPT
from serving import mean_error

GEMMA3 = TINY["gemma3"]

#: What a file may hold: sizes of its configuration, types of its matrices.
VARIANTS = {
    "tied": ({}, {}),
    "untied": ({"tie_word_embeddings": False}, {"output.weight": Type.Q5_0}),
    "untied, output in F16": ({"tie_word_embeddings": False}, {"output.weight": Type.F16}),
    "F16": ({}, {"token_embd.weight": Type.F16}),
    "F32": ({}, {"token_embd.weight": Type.F32}),
    "BF16": ({}, {"token_embd.weight": Type.BF16}),
    "more rows than tokens": ({"vocab_size": 530}, {"token_embd.weight": Type.Q4_0}),
}
#: Those that an NPU treats in ways of its own.
ON_NPU = ("tied", "untied", "more rows than tokens")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    def write(variant: str) -> Written:
        sizes, types = VARIANTS[variant]
        tiny = replace(GEMMA3, sizes=GEMMA3.sizes | sizes, types=types)
        return write_model(tmp_path_factory.mktemp("gemma3"), tiny)

    return write


def _check(engine: EngineProcess, model: Written, dense: int, limit: float, dtype: str) -> None:
    with engine.load(model.path, dtype=dtype, probe="probes:layouts") as served:
        ((tokens, logprobs),) = served.continued([PROMPT], 4)
    error = mean_error(logprobs, model.logprobs(tokens))
    print(f"mean absolute error of log-probabilities: {error:.2e}; {served.probes}")
    assert error <= limit
    matrices = [layout for name, layout in served.probes[0].items() if "self_attn" not in name]
    assert matrices.count("dense") == dense


@pytest.mark.parametrize("variant", VARIANTS)
def test_on_the_cpu(cpu_engine, written, variant):
    types = VARIANTS[variant][1].values()
    dense = sum(kind in (Type.F16, Type.F32, Type.BF16) for kind in types)
    _check(cpu_engine, written(variant), dense, 1e-4, "float32")


@pytest.mark.parametrize("variant", ON_NPU)
def test_on_the_simulated_npu(npu_engine, written, variant):
    _check(npu_engine, written(variant), 0, 0.03, "bfloat16")


#: Models whose classes in the engine pass their embedding or output matrix no method for GGUF.
WITHOUT_METHOD = (
    *("command-r", "deepseek-v2-lite", "gemma2", "glm4moe", "gpt-oss", "granite", "hunyuan-moe"),
    *("minimax-m2", "mixtral", "olmo2", "smollm3"),
)


@pytest.mark.parametrize("name", WITHOUT_METHOD)
def test_of_other_classes(cpu_engine, tiny_model, name):
    with cpu_engine.load(tiny_model(name).path, probe="probes:layouts") as served:
        assert set(served.probes[0].values()) == {"blocks"}


@pytest.mark.parametrize("name", ["granite", "hunyuan-moe", "mixtral"])
def test_a_tied_output_matrix_takes_no_memory(cpu_engine, tmp_path, name):
    """Of models whose class has an output matrix even where the file has none."""
    tiny = TINY[name]
    model = write_model(tmp_path, replace(tiny, sizes=tiny.sizes | {"tie_word_embeddings": True}))
    with cpu_engine.load(model.path, dtype="float32", probe="probes:bytes_by_form") as served:
        (held,) = served.probes
        ((tokens, logprobs),) = served.continued([PROMPT], 4)
    matrices = [t for t in open_gguf(model.path).tensors.values() if t.type.is_quantized]
    assert held["blocks"] == sum(tensor.nbytes for tensor in matrices)
    assert mean_error(logprobs, model.logprobs(tokens)) <= 1e-4
