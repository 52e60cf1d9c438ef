"""Every key that a file may have: the model follows it as transformers' does, or it is refused.

A file with another value of each key at once is served and compared with transformers under the
same changes.  That each of them counts is seen from transformers: without it, its answer differs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from ascend_gguf import GGUFError, load_config
from ascend_gguf.architectures import architecture_of
from ascend_gguf.reader import open_gguf
from hf_models import TINY, Tiny, Written, write_model
from hf_models.changes import LINEAR, OTHER, SIZES, YARN, Change, changed, rope, without
from random_model import PROMPT
from rewrite import rewrite
from serving import mean_error

#: Mean error of log-probabilities that is right, and the least that a key must make.
RIGHT = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.03}
COUNTS = 3e-4

#: Sizes that no shape follows: of the cache, of blocks left out, and what tells files apart.
NO_SIZE_OF_A_TENSOR = {
    "context_length",
    "nextn_predict_layers",
    "expert_gating_func",
    "full_attention_interval",
    "attention.recurrent_layers",
    # Of what chooses among more tokens than the context has.
    "attention.indexer.top_k",
    "attention.indexer.types",
    "attention.indexer.block_size",
    "attention.indexer.local_blocks",
    "attention.shared_kv_layers",  # whose tensors a file may have all the same
}

#: Of Mistral Large 3, of whose kind transformers has Mistral 4.
_TEMPERATURE = ("attention.temperature_scale", "attention.temperature_length")

#: Keys that transformers' model leaves out.  Three normalise queries and keys after turning them,
#: so that what they are multiplied by is lost; DeepSeek's norms of latents have an epsilon of
#: their own, where llama.cpp and the engine have one for all norms.
LOST = {
    "llama4_text": {"rope.scaling.yarn_attn_factor"},
    "hunyuan_v1_dense": {"rope.scaling.yarn_attn_factor"},
    "hunyuan_v1_moe": {"rope.scaling.yarn_attn_factor"},
    "hy_v3": {"expert_weights_norm"},  # always
    "granitemoeshared": {"expert_weights_norm", "expert_weights_scale"},  # always, and never
    # Never; and what llama.cpp leaves out.
    "deepseek_ocr2_text": {
        "expert_weights_norm",
        "rope.dimension_count",
        "attention.sliding_window",
    },
    "afmoe": {"expert_weights_norm"},  # always
    "minimax_m3_vl_text": {"expert_weights_norm"},  # always
    "deepseek_v2": {"expert_weights_norm", "attention.layer_norm_rms_epsilon", *_TEMPERATURE},
    "deepseek_v3": {"attention.layer_norm_rms_epsilon", *_TEMPERATURE},
    "deepseek_v32": {"attention.layer_norm_rms_epsilon"},
    "glm_moe_dsa": {"attention.layer_norm_rms_epsilon"},
    "hy_v4": {"attention.layer_norm_rms_epsilon"},
    "mistral4": {"attention.layer_norm_rms_epsilon"},
    "minicpm3": {"attention.layer_norm_rms_epsilon"},
    "kimi_linear": {"attention.layer_norm_rms_epsilon"},
    # Layers of another type have other tensors.
    "mimo_v2_flash": {"attention.sliding_window_pattern"},
    # Which counts where a file lacks that of RMS norms.
    "nemotron_h": {"attention.layer_norm_epsilon"},
}

_HALF = {"rope_type": "default", "partial_rotary_factor": 0.5}
_MOE = {"moe_intermediate_size": 64, "num_experts_per_tok": 2, "num_experts": 4}


def _with_sizes(name: str, **sizes: Any) -> Tiny:
    return replace(TINY[name], sizes={**TINY[name].sizes, **sizes})


#: Beside those of the table: Qwen, which other tests make by :mod:`random_model`.
MODELS: Mapping[str, Tiny] = TINY | {
    # Experts in groups, as no published model of these has them.
    "glm4moe": _with_sizes("glm4moe", n_routed_experts=8, n_group=2, topk_group=1),
    "glm-5": _with_sizes("glm-5", n_group=2, topk_group=1),
    "kimi-linear": _with_sizes("kimi-linear", n_group=2, topk_group=1),
    "deepseek-v2-lite": _with_sizes(
        "deepseek-v2-lite", n_group=2, topk_group=1, topk_method="group_limited_greedy"
    ),
    # Without the factors of Llama 3.
    "step-3.5": replace(
        TINY["step-3.5"],
        sizes={**TINY["step-3.5"].sizes}
        | {
            "rope_parameters": {
                "full_attention": _HALF | {"rope_theta": 30000.0},
                "sliding_attention": _HALF | {"partial_rotary_factor": 1.0, "rope_theta": 20000.0},
            }
        },
        extra=lambda config: {},
    ),
    "qwen2": Tiny("qwen2", "qwen2"),
    "qwen3": Tiny("qwen3", "qwen3", {"head_dim": 64}),
    "qwen2moe": Tiny(
        "qwen2moe",
        "qwen2_moe",
        _MOE | {"shared_expert_intermediate_size": 96},
        lambda config: {
            "expert_feed_forward_length": config.moe_intermediate_size,
            "expert_shared_feed_forward_length": config.shared_expert_intermediate_size,
        },
    ),
    "qwen3moe": Tiny(
        "qwen3moe",
        "qwen3_moe",
        _MOE | {"head_dim": 64, "norm_topk_prob": True},
        lambda config: {"expert_feed_forward_length": config.moe_intermediate_size},
    ),
}

#: One name for each entry of the project's table.
_VARIANTS = ("llama-3.1", "llama-bias", "mistral", "phi4-mini", "command-r-plus", "exaone4-1.2b")
_VARIANTS += ("minicpm4", "minicpm3-long", "nemotron-super", "laguna-m", "grok-1")
NAMES = tuple(name for name in MODELS if name not in _VARIANTS)
#: What runs on the simulated NPU too.
ON_THE_NPU = ("granite", "cohere2", "olmo3", "qwen3moe")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A model, by name."""
    return cache(lambda name: write_model(tmp_path_factory.mktemp(name), MODELS[name]))


def followed(model: Written) -> frozenset[str]:
    """Keys that the project's table says the model follows, but for those of sizes."""
    keys = architecture_of(open_gguf(model.path)).obeyed - SIZES
    keys -= {"attention.causal"}  # of embeddings: test_features.py
    # Of pictures: text has one position in all sections, and nothing of them in a layer.
    keys -= {"rope.dimension_sections", "n_deepstack_layers"}
    latent = {"rope.dimension_count"} if "kv_lora_rank" in model.reference.config else set()
    return keys - latent


def other_values(model: Written) -> dict[str, tuple[Any, Change]]:
    """Another value for each key, but for those of YaRN, and what transformers calls it."""
    config = model.reference.config
    keys = followed(model)
    keys -= LOST.get(config.model_type, set())
    found = {key: change for key, change in (OTHER | LINEAR).items() if key in keys}
    computed = {
        "attention.sliding_window_pattern": lambda: [
            kind != "sliding_attention" for kind in config.layer_types
        ],
        "activation_sparsity_scale": lambda: [NormalDist().inv_cdf(0.8)] * config.num_hidden_layers,
        "expert_group_count": lambda: 2 * config.n_group,
        "expert_group_used_count": lambda: config.topk_group + 1,
        "expert_weights_norm": lambda: not config.norm_topk_prob,
        "swiglu_clamp_exp": lambda: (
            [0.0, 0.3, 0.0, 0.2] if "swiglu_limits" in config else [0.3] * config.num_hidden_layers
        ),
    }
    return {key: (computed[key]() if key in computed else v, c) for key, (v, c) in found.items()}


def with_keys(model: Written, path: Path, values: Mapping[str, Any]) -> Path:
    arch = open_gguf(model.path).architecture
    if "rope.scale_linear" in values:  # which counts where nothing newer does
        values = dict.fromkeys(("rope.scaling.type", "rope.scaling.factor")) | dict(values)
    rewrite(model.path, path, metadata={f"{arch}.{key}": value for key, value in values.items()})
    return path


def is_refused(model: Written, path: Path, values: Mapping[str, Any]) -> bool:
    """True if the file is, by the name of one of its keys or of the rotary embedding's."""
    try:
        load_config(with_keys(model, path, values))
    except GGUFError as error:
        assert error.key is not None, error
        name = error.key.partition(".")[2]
        assert name in values or (name.startswith("rope.") and any("rope." in v for v in values))
        return True
    return False


def check_others(engine, model: Written, path: Path, **options: Any) -> list[str]:
    """Every key but YaRN's, at once; gives those that count."""
    values = other_values(model)
    values = {k: v for k, v in values.items() if not is_refused(model, path, {k: v[0]})}
    with_keys(model, path, {key: value for key, (value, _) in values.items()})
    changes = {key: change for key, (_, change) in values.items()}
    whole = logprobs(model, *changes.values())
    for key in changes:
        fewer = logprobs(model, *(changes[other] for other in changes if other != key))
        assert mean_error(fewer, whole) > COUNTS, f"{key}: {mean_error(fewer, whole):.1e}"
    compare(engine, path, whole, **options)
    return list(changes)


def check_yarn(engine, model: Written, path: Path, **options: Any) -> list[str]:
    """Every key of YaRN at once."""
    keys = followed(model)
    if "rope.scaling.type" not in keys:
        return []
    values = {key: YARN[key][0] for key in YARN if key in keys}
    least = {key: values[key] for key in ("rope.scaling.type", "rope.scaling.factor")}
    if is_refused(model, path, least):
        return []
    values = {k: v for k, v in values.items() if not is_refused(model, path, least | {k: v})}
    with_keys(model, path, values)
    changes = [YARN[key][1] for key in values]
    whole = logprobs(model, *changes)
    for key in values.keys() - LOST.get(model.reference.config.model_type, set()):
        fewer = logprobs(model, *changes, lambda config, key=key: without(key, config))
        assert mean_error(fewer, whole) > COUNTS, f"{key}: {mean_error(fewer, whole):.1e}"
    compare(engine, path, whole, **options)
    return list(values)


def logprobs(model: Written, *changes: Change) -> list[float]:
    return model.logprobs(reference=changed(model, *changes))


def compare(engine, path: Path, expected: list[float], dtype: str) -> None:
    found = engine.score(path, PROMPT, 1, dtype=dtype).logprobs[: len(expected)]
    error = mean_error(found, expected)
    print(f"mean absolute error of log-probabilities: {error:.2e}")
    assert error <= RIGHT[dtype], f"error {error:.2e}"


@pytest.mark.parametrize("name", NAMES)
def test_every_key_has_another_value(written, name):
    """A key that the table learns needs a line of ``hf_models/changes.py``."""
    model = written(name)
    # The last is a factor beside that of YaRN: test_config.py has it.
    assert followed(model) <= {*OTHER, *LINEAR, *YARN, "rope.scaling.attn_factor"}


@pytest.mark.parametrize("name", NAMES)
def test_on_the_cpu(cpu_engine, written, tmp_path, name):
    model = written(name)
    keys = check_others(cpu_engine, model, tmp_path / "others.gguf", dtype="float32")
    keys += check_yarn(cpu_engine, model, tmp_path / "yarn.gguf", dtype="float32")
    print(f"{len(keys)} keys: {', '.join(keys)}")


#: As model cards write them, and what transformers calls it.
_YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
OVERRIDES = {
    "rope_theta": ({"rope_theta": 50.5}, {"rope_theta": 50.5}),
    "rope_scaling": (
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_type": "linear", "factor": 2.0},
    ),
    "rope_parameters": (
        {"text_config": {"rope_parameters": {"rope_type": "yarn", **_YARN}}},
        {"rope_type": "yarn", **_YARN},
    ),
}


@pytest.mark.parametrize("name", OVERRIDES)
def test_overrides(cpu_engine, written, name):
    typed, expected = OVERRIDES[name]
    model = written("llama-2")
    whole = logprobs(model, lambda config: rope(config, **expected))
    assert mean_error(whole, model.logprobs()) > COUNTS
    options = {"dtype": "float32", "json_model_override_args": json.dumps(typed)}
    found = cpu_engine.score(model.path, PROMPT, 1, **options).logprobs[: len(whole)]
    assert mean_error(found, whole) <= RIGHT["float32"]


@pytest.mark.parametrize("name", ON_THE_NPU)
def test_on_the_simulated_npu(npu_engine, written, tmp_path, name):
    dtype = MODELS[name].npu_dtype
    check_others(npu_engine, written(name), tmp_path / "others.gguf", dtype=dtype)


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes_are_refused(written, tmp_path, name):
    """A size that is not that of the tensors is an error before anything starts."""
    model = written(name)
    file = open_gguf(model.path)
    architecture = architecture_of(file)
    unused = set(NO_SIZE_OF_A_TENSOR)
    if any(
        ".attn_k_b.weight" in tensor for tensor in file.tensors
    ):  # attention over latent vectors, in other keys
        unused |= {"attention.key_length", "attention.value_length", "attention.head_count_kv"}
    if not any(".ffn_down.weight" in tensor for tensor in file.tensors):
        unused.add("feed_forward_length")
    if name == "granite-4-dense":  # its width is that of a shared expert
        unused.add("feed_forward_length")
    if "moe_num_shared_experts" in model.reference.config:
        unused.add("expert_shared_feed_forward_length")  # unless the number is missing
    for key in SIZES & architecture.obeyed - unused:
        value = file.metadata.get(f"{file.architecture}.{key}")
        if value is None:
            continue
        values = np.multiply(value, 3).tolist() or 1
        path = with_keys(model, tmp_path / "m.gguf", {key: values})
        with pytest.raises(GGUFError):
            changed_file = open_gguf(path)
            architecture_of(changed_file).name_map(changed_file, load_config(path))


def test_files_that_say_the_same_in_another_way(written, tmp_path):
    """Arrays of equal values, no experts, widths that follow: the model as it was."""
    experts = {"expert_count": 0, "expert_used_count": 0, "expert_weights_scale": 2.5}
    layers = MODELS["llama-2"].sizes.get("num_hidden_layers", 2)
    arrays = {
        "attention.head_count": [4] * layers,
        "attention.head_count_kv": [4] * layers,
        "feed_forward_length": [192] * layers,
    }
    widths = {
        "feed_forward_length": 128,
        "expert_feed_forward_length": None,
        "attention.head_count_kv": [2] * layers,
    }
    for name, keys in (("llama-2", experts), ("llama-2", arrays), ("qwen3moe", widths)):
        model = written(name)
        file = open_gguf(with_keys(model, tmp_path / "m.gguf", keys))
        found, expected = load_config(file.path), load_config(model.path)
        found.intermediate_size = expected.intermediate_size  # of no layer, in a mixture
        assert found.to_dict() == expected.to_dict()
        architecture_of(file).name_map(file, found)
    with pytest.raises(GGUFError, match="no such tensor"):  # experts of a model without any
        file = open_gguf(with_keys(written("mixtral"), tmp_path / "m.gguf", experts))
        architecture_of(file).name_map(file, load_config(file.path))
