"""Models that several ranks cannot share evenly, and ranks that end alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from engine_process import EngineFailed, EngineProcess
from hf_models import ONE_STAGE, TINY, Written, write_model
from random_model import write_model as write_random_model
from serving import CPU, cpu_environment, mean_error, stop_group, tail, wait_for_group_to_end
from srt.models.test_architectures import ANSWER, LIMITS, score_right

DATA = Path(__file__).parents[2] / "data"
BUNDLED = sorted(path.stem for path in DATA.glob("*.gguf"))

#: Six heads, three key heads, and a vocabulary that no number of ranks below divides.
ODD = {
    "hidden_size": 192,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "vocab_size": 521,
}

#: Models whose key heads are as many as their query heads.
ALL_HEADS = {"num_key_value_heads": 6}

#: One of each kind that the engine pads on the CPU: with frequencies of its own, one matrix for
#: queries, keys and values, biases of experts, latent attention, shared experts.
PADDED = ("llama-3.1", "phi3", "gpt-oss", "deepseek-v3", "glm4moe")

#: Those that it pads wrongly.
NOT_PADDED = ("mixtral", "granitemoe", "olmo2", "olmo3", "command-r", "command-r-plus", "cohere2")
NOT_PADDED += ("starcoder2", "exaone4", "exaone4-1.2b", "minimax-m2", "olmoe")


@pytest.fixture
def odd_model(tmp_path):
    def written(name: str, **sizes) -> Written:
        sizes = ODD | sizes
        if "kv_lora_rank" in TINY[name].sizes:
            sizes |= ALL_HEADS
        return write_model(tmp_path, replace(TINY[name], sizes={**TINY[name].sizes, **sizes}))

    return written


def _refusal(engine: EngineProcess, path: Path, **options) -> str:
    with pytest.raises(EngineFailed) as failed, engine.load(path, **options):
        pass
    assert "Init parallel begin" not in failed.value.log, "a rank was started"
    assert "Traceback" not in failed.value.log
    assert failed.value.reason.startswith(f"{path}: ")
    return failed.value.reason.removeprefix(f"{path}: ")


@pytest.mark.parametrize("name", PADDED)
def test_padded_on_the_cpu(cpu_engine, odd_model, name):
    """Four ranks: the last has no key head, and no column of the 192 of a layer, of its own."""
    score_right(cpu_engine, odd_model(name), "float32", tp_size=4)


@pytest.mark.parametrize("name", ["mixtral", "gpt-oss"])
def test_experts_padded_on_the_cpu(cpu_engine, odd_model, name):
    """The second rank has 32 columns of an expert, and as many of padding."""
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    score_right(cpu_engine, odd_model(name, **sizes, intermediate_size=96), "float32", tp_size=2)


@pytest.mark.parametrize("name", NOT_PADDED)
def test_refused_on_the_cpu_where_padding_is_wrong(cpu_engine, odd_model, name):
    assert _refusal(cpu_engine, odd_model(name).path, tp_size=2) == (
        "2 ranks cannot share 3 key-value heads (found --tp-size 2). Use --tp-size 1 or 3."
    )


@pytest.mark.parametrize("name, ranks", [("olmo2", 3), ("gpt-oss", 3)])
def test_three_ranks_on_the_cpu(cpu_engine, odd_model, name, ranks):
    score_right(cpu_engine, odd_model(name), "float32", tp_size=ranks)


def test_refused_on_an_npu(npu_engine, odd_model):
    model = odd_model("glm4moe", num_attention_heads=9, head_dim=64)
    assert _refusal(npu_engine, model.path, tp_size=2) == (
        "2 ranks cannot share 9 attention heads (found --tp-size 2). Use --tp-size 1."
    )
    # 64 columns of an expert, 192 of a dense layer.
    assert _refusal(npu_engine, model.path, tp_size=3) == (
        "3 ranks cannot share 64 columns of an expert and 64 columns of the shared experts "
        "(found --tp-size 3). Use --tp-size 1."
    )


@pytest.mark.parametrize("name", ["glm4moe", "deepseek-v3", "gpt-oss", "llama4"])
def test_experts_dealt_among_npus(npu_engine, tiny_model, name):
    """Shared experts, biases, weights of what an expert takes: beside experts of other ranks."""
    score_right(npu_engine, tiny_model(name), TINY[name].npu_dtype, tp_size=2, ep_size=2)


def test_key_heads_cannot_be_shared_on_an_npu(npu_engine, odd_model):
    assert _refusal(npu_engine, odd_model("olmo2").path, tp_size=2) == (
        "2 ranks cannot share 3 key-value heads (found --tp-size 2). Use --tp-size 1, 3 or 6."
    )


@pytest.mark.parametrize("name", ["muse-glimmer", "nanbeige"])
def test_key_heads_that_no_rank_copies_on_an_npu(npu_engine, odd_model, name):
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    assert _refusal(npu_engine, odd_model(name, **sizes).path, tp_size=4) == (
        "4 ranks cannot share 2 key-value heads (found --tp-size 4). Use --tp-size 1 or 2."
    )


@pytest.mark.parametrize("name", ["llama-3.1", "granitemoe"])
def test_more_ranks_than_key_heads_on_an_npu(npu_engine, odd_model, name):
    """Half of 160 columns is no multiple of a block, nor of what an NPU packs together."""
    sizes = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 1}
    sizes["intermediate_size"] = 160
    score_right(npu_engine, odd_model(name, **sizes), "float16", tp_size=2)


def test_experts_that_cannot_be_dealt(cpu_engine, tiny_model):
    assert _refusal(cpu_engine, tiny_model("llama4").path, tp_size=3, ep_size=3) == (
        "3 ranks cannot share 4 experts (found --tp-size 3 --ep-size 3). Leave out --ep-size."
    )
    score_right(cpu_engine, tiny_model("llama4"), "float32", tp_size=3)


def test_ranks_without_cores(cpu_engine, tiny_model):
    told = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
    assert _refusal(cpu_engine, tiny_model("llama-2").path, dp_size=3, environment=told) == (
        "3 ranks need cores of their own (found SGLANG_CPU_OMP_THREADS_BIND=0|1). Set "
        "SGLANG_CPU_OMP_THREADS_BIND to the cores of each rank, as in 0-3|4-7."
    )


def test_two_replicas(cpu_engine, tiny_model):
    bound = {"SGLANG_CPU_OMP_THREADS_BIND": cpu_environment(4)["SGLANG_CPU_OMP_THREADS_BIND"]}
    options = {"tp_size": 2, "dp_size": 2, "environment": bound}
    score_right(cpu_engine, tiny_model("llama-2"), "float32", **options)


def test_more_stages_than_layers(cpu_engine, tiny_model):
    assert _refusal(cpu_engine, tiny_model("llama-2").path, pp_size=3) == (
        "more stages than layers (found --pp-size 3, 2 layers). Use --pp-size 2 at the most."
    )


@pytest.mark.parametrize("name", BUNDLED)
def test_qwen_on_two_stages(cpu_engine, name):
    model = DATA / f"{name}.gguf"
    reference = json.loads(model.with_suffix(".ref.json").read_text())
    score = cpu_engine.score(model, reference["input_ids"], ANSWER, dtype="float32", pp_size=2)
    prompt = score.logprobs[:-ANSWER]
    assert mean_error(prompt, reference["token_logprobs"]) <= LIMITS["float32"]


@pytest.mark.parametrize("name", ["llama-3.1", "glm4moe"])
def test_two_stages_on_an_npu(npu_engine, tiny_model, name):
    score_right(npu_engine, tiny_model(name), "float16", pp_size=2)


@pytest.mark.parametrize("name", sorted(name for name in ONE_STAGE if not TINY[name].twin))
def test_one_stage_only(cpu_engine, tiny_model, name):
    reason = _refusal(cpu_engine, tiny_model(name).path, pp_size=2)
    assert " runs on one stage only (found --pp-size 2). Leave out" in reason


#: Ranks that attend to requests of their own, and share the rest of the model.
GROUPS = {"enable_dp_attention": True, "tp_size": 2, "dp_size": 2}


@pytest.mark.parametrize("name, ep", [("deepseek-v2-lite", 1), ("qwen3.5-moe", 1), ("glm4moe", 2)])
def test_data_parallel_attention(npu_engine, tiny_model, name, ep):
    score_right(npu_engine, tiny_model(name), TINY[name].npu_dtype, ep_size=ep, **GROUPS)


@pytest.mark.parametrize("name", ["llama-3.1", "falcon-h1", "kimi-linear", "laguna-xs"])
@pytest.mark.parametrize("options", [GROUPS, {"tp_size": 2, "attn_cp_size": 2}], ids=str)
def test_attention_on_all_ranks_only(npu_engine, tiny_model, name, options):
    reason = _refusal(npu_engine, tiny_model(name).path, dtype=TINY[name].npu_dtype, **options)
    option = "--attn-cp-size" if "attn_cp_size" in options else "--enable-dp-attention"
    assert f" cannot attend on a part of the ranks (found {option}). Leave out" in reason


def test_a_rank_that_ends_takes_the_server_along(zygote, log, tmp_path):
    """The last rows of a matrix, which the second rank alone takes, are no numbers."""
    model = write_random_model(tmp_path / "model.gguf", default="F16")
    tensors = gguf.GGUFReader(model.path).tensors
    (broken,) = (tensor for tensor in tensors if tensor.name == "blk.1.attn_q.weight")
    with open(model.path, "r+b") as file:
        file.seek(broken.data_offset + broken.n_bytes // 2)
        file.write(np.full(broken.n_bytes // 4, np.nan, "<f2").tobytes())
    arguments = ["--model-path", str(model.path), *CPU, "--tp-size", "2", "--port", "0"]
    order = {"arguments": arguments, "log": str(log), "environment": cpu_environment(2)}
    pid = zygote.fork(order)
    try:
        assert wait_for_group_to_end(pid, patience=60) == [], tail(log)
    finally:
        stop_group(pid, ask=False)
    text = log.read_text()
    assert text.count(f"error: {model.path}: parameters are uninitialised, or NaN") == 1
    assert "Traceback" not in text
