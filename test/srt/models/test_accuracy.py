"""Log-probabilities of models against transformers in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_process import EngineProcess
from needs import ABSENT, shared
from random_model import ALL_TYPES, PROMPT, Spec, read_model, write_model
from rewrite import rewrite
from serving import mean_error
from shared_data import shared_path

DATA = Path(__file__).parents[2] / "data"

#: Mean absolute error of the log-probabilities of a prompt's tokens.
LIMITS = {"float32": 0.001, "bfloat16": 0.02}

BUNDLED = sorted(path.stem for path in DATA.glob("*.gguf"))


def _shared_models() -> list[str]:
    folder = shared_path("models")
    found = sorted(path.stem for path in folder.glob("*.gguf")) if folder else []
    return [name for name in found if name not in BUNDLED]


#: How far below the best experts' logits a chosen one's may be, in bfloat16: four times the root
#: mean square of what rounding does to these models' logits, in transformers as here.
NEARLY_TIED = 0.05


def _check(engine: EngineProcess, path: Path, prompt, expected, *arguments, **options) -> None:
    with engine.load(path, *arguments, dtype="float32", **options) as model:
        assert model.mean_error(prompt, expected) <= LIMITS["float32"]


def check_file(
    engine: EngineProcess, model: Path, folder: Path, dtype: str, limit: float, **options: Any
) -> str:
    """Load a file of llama.cpp's and compare it with its reference; what the engine wrote.

    In bfloat16 experts whose logits nearly tie change places, and with them the answer, in
    transformers too.  So there the reference is computed with the experts that the engine chose,
    and each of them must be among the best but for rounding.
    """
    reference = json.loads(model.with_suffix(".ref.json").read_text())
    prompt, expected = reference["input_ids"], reference["token_logprobs"]
    routes = folder if dtype == "bfloat16" and "moe" in model.name else None
    with engine.load(model, dtype=dtype, routes=routes, **options) as loaded:
        found = loaded.prompt_logprobs(prompt)
        log = loaded.log
    print(f"{model.name}: mean error of log-probabilities {mean_error(found, expected):.2e}")
    if routes:
        chosen = [np.load(routes / f"{i}.npy") for i in range(len(list(routes.glob("*.npy"))))]
        expected, furthest = read_model(model).logprobs_by_routes(prompt, chosen)
        print(
            f"with the experts it chose {mean_error(found, expected):.2e}; of these the furthest "
            f"from a place among the best by {furthest:.3f}"
        )
        assert furthest <= NEARLY_TIED
    assert mean_error(found, expected) <= limit
    return log


def _check_file(engine, model: Path, folder: Path, dtype: str, **options):
    check_file(engine, model, folder, dtype, LIMITS[dtype], **options)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("name", BUNDLED)
def test_quantized_by_llama_cpp(cpu_engine, tmp_path, name, dtype):
    _check_file(cpu_engine, DATA / f"{name}.gguf", tmp_path, dtype)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize(
    "name",
    _shared_models() or [pytest.param("", marks=pytest.mark.skip(reason=ABSENT))],
)
def test_every_type_quantized_by_llama_cpp(cpu_engine, tmp_path, name, dtype):
    _check_file(cpu_engine, shared("models", f"{name}.gguf"), tmp_path, dtype)


@pytest.mark.parametrize("dtype", LIMITS)
@pytest.mark.parametrize("experts", [1, 2], ids=["tp2", "tp2-ep2"])
@pytest.mark.parametrize("name", [name for name in BUNDLED if "moe" in name])
def test_experts_on_two_ranks(cpu_engine, tmp_path, name, experts, dtype):
    path = DATA / f"{name}.gguf"
    _check_file(cpu_engine, path, tmp_path, dtype, tp_size=2, ep_size=experts)


@pytest.mark.parametrize("name", [name for name in BUNDLED if "dense" in name])
def test_dense_on_two_ranks(cpu_engine, tmp_path, name):
    # 768 columns of 256-wide blocks: the cut between the ranks falls inside a block.
    _check_file(cpu_engine, DATA / f"{name}.gguf", tmp_path, "float32", tp_size=2)


def _by_tensor(types: tuple[str, ...]) -> dict[str, str]:
    """A type for each matrix of a four-layer dense model, in turn; every type at least once."""
    spec = Spec(layers=4)
    matrices = [name for name, shape in spec.shapes().items() if len(shape) == 2]
    assert len(matrices) >= len(types)
    return {f"^{n}$": types[i % len(types)] for i, n in enumerate(matrices)}


#: What a file may hold that the bundled ones do not.
VARIANTS = {
    "tied": {"tied": True},
    "tied-moe": {"arch": "qwen3moe", "tied": True},
    # Rows of no multiple of 16, which operators of NPUs and of the CPU do not take.
    "head-size": {"head_size": 40, "heads": 8, "kv_heads": 2, "default": "Q8_0"},
    "all-types": {"layers": 4, "types": _by_tensor(ALL_TYPES)},
    "F16": {"default": "F16"},
    "F32": {"default": "F32"},
    "BF16-experts": {"arch": "qwen3moe", "default": "BF16"},
    "F32-experts": {"arch": "qwen3moe", "default": "F32"},
    "F16-router": {"arch": "qwen3moe", "types": {"ffn_gate_inp": "F16"}},
    "quantized-router": {"arch": "qwen3moe", "types": {"ffn_gate_inp": "Q8_0"}},
    "fused-experts": {"arch": "qwen3moe", "fused_experts": True},
    "expert-types": {
        "arch": "qwen3moe",
        "types": {
            "1.ffn_gate_exps": "IQ4_XS",
            "gate_exps": "Q4_K",
            "up_exps": "BF16",
            "down_exps": "Q5_1",
        },
    },
    "qkv-types": {"types": {"attn_q.w": "F16", "attn_k.w": "Q4_K", "attn_v.w": "F32"}},
    "gate-up-types": {"types": {"ffn_gate": "Q8_0", "ffn_up": "BF16"}},
    # v before q before k, up before gate, and plain numbers, which the engine appends as they come.
    "file-order": {"default": "F16", "order": lambda name: name[::-1]},
    "file-order-quantized": {"arch": "qwen2moe", "order": lambda name: name[::-1]},
    # Vectors in blocks, and a scale for each matrix beside the blocks'.
    "scaled": {
        "scales": True,
        "vectors": "Q8_0",
        "types": {"ffn_up": "F16", "attn_k.w": "Q4_K", "ffn_down": "Q6_K"},
        "default": "NVFP4",
    },
    "scaled-experts": {
        "arch": "qwen2moe",
        "scales": True,
        "vectors": "Q5_0",
        "types": {"1.ffn_gate_exps": "BF16", "up_exps": "Q4_K"},
        "default": "NVFP4",
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_of_files(cpu_engine, tmp_path, variant):
    model = write_model(tmp_path / "model.gguf", **VARIANTS[variant])
    _check(cpu_engine, model.path, PROMPT, model.logprobs())


@pytest.mark.parametrize(
    "variant",
    ["all-types", "expert-types", "fused-experts", "qkv-types", "scaled", "scaled-experts"],
)
def test_variants_of_files_on_two_ranks(cpu_engine, tmp_path, variant):
    model = write_model(tmp_path / "model.gguf", **VARIANTS[variant])
    _check(cpu_engine, model.path, PROMPT, model.logprobs(), tp_size=2)


def test_more_ranks_than_key_heads(cpu_engine, tmp_path):
    model = write_model(tmp_path / "model.gguf", kv_heads=1)
    _check(cpu_engine, model.path, PROMPT, model.logprobs(), tp_size=2)


@pytest.mark.parametrize("arch", ["qwen2", "qwen3moe"])
def test_modules_to_not_convert_load_as_numbers(cpu_engine, tmp_path, arch):
    model = write_model(tmp_path / "model.gguf", arch=arch)
    skipped = {"modules_to_not_convert": ["layers.0.", "embed_tokens", "lm_head", "down_proj"]}
    options = ("--model-loader-extra-config", json.dumps(skipped))
    _check(cpu_engine, model.path, PROMPT, model.logprobs(), *options)


def test_split_file(cpu_engine, tmp_path):
    # Any file of the set will do; the reference is that of the whole file.
    rewrite(DATA / "qwen3-moe-Q4_K_M.gguf", tmp_path / "m.gguf", split_max_tensors=7)
    files = sorted(tmp_path.glob("m-*.gguf"))
    reference = json.loads((DATA / "qwen3-moe-Q4_K_M.ref.json").read_text())
    _check(cpu_engine, files[2], reference["input_ids"], reference["token_logprobs"])
