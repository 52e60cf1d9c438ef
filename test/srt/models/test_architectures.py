"""Every architecture of the table, computed and compared with transformers in float32."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace

import gguf
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from ascend_gguf import open_gguf
from engine_process import EngineFailed, EngineProcess
from hf_models import ONE_STAGE, TINY, Written, write_model
from hf_models.hybrid import qwen3next_merged
from random_model import PROMPT
from rewrite import rewrite
from serving import CPU, NPU_ONE, cpu_environment, mean_error, typical_error

#: Tokens of an answer, which other code computes than those of a prompt.
ANSWER = 12

#: Error of the log-probabilities of a prompt's tokens, of the answer's, and of the answer's when
#: the prompt is in the cache, as :func:`typical_error` has it.
LIMITS = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.03}

#: Small random models stay in float16's range, whatever their architecture is known for.
ANY_DTYPE = {"model_loader_extra_config": '{"float16": "allow"}'}

#: What the log says when a step has been replayed and compared with the model's own.
REPLAYED = "CPU decode graph active for batch size 1"

#: One of each kind, which a server serves too: dense, capped scores, experts with biases, and
#: latent attention with experts.
SERVED = ("llama-3.1", "gemma2", "gpt-oss", "deepseek-v3")

#: Models with one matrix for embedding and output, which are on different stages.
TIED = ("llama-bias", "smollm3", "exaone4")


#: Whether models like others are tested on several ranks and stages, too.
ALL = bool(os.environ.get("ALL_PEERS"))


def _runs_on(device: str) -> list[str]:
    return [name for name, tiny in TINY.items() if device not in tiny.refused]


def _alone_on(device: str) -> list[str]:
    """Those that are no twin of another; all of them with ``ALL_PEERS`` in the environment."""
    return [name for name in _runs_on(device) if ALL or not TINY[name].twin]


def _check(model: Written, dtype: str, tokens: Sequence[int], *found: Sequence[float]) -> None:
    """Compare log-probabilities: each of ``found`` is of the last tokens."""
    expected = model.logprobs(tokens)
    for logprobs in found:
        errors = np.abs(np.subtract(logprobs, expected[-len(logprobs) :]))
        halves = (errors[:-ANSWER], errors[-ANSWER:])
        parts = [typical_error(half, dtype) for half in halves if len(half)]
        print("absolute error of log-probabilities:", *(f"{part:.2e}" for part in parts))
        assert max(parts) <= LIMITS[dtype]


def score_right(engine: EngineProcess, model: Written, dtype: str, **options) -> str:
    """Compute a prompt and its answer, compare both, and return the log."""
    options = (ANY_DTYPE if dtype == "float16" else {}) | options
    score = engine.score(model.path, PROMPT, ANSWER, dtype=dtype, **options)
    _check(model, dtype, score.tokens, score.logprobs, score.cached_logprobs)
    return score.log


def _serve(zygote, log, model: Written, dtype: str, *arguments: str, environment=None) -> None:
    # The prompt is given as token ids; these files have another model's tokenizer.
    arguments = (*arguments, "--dtype", dtype, "--skip-tokenizer-init")
    if dtype == "float16":
        arguments += ("--model-loader-extra-config", ANY_DTYPE["model_loader_extra_config"])
    with zygote.serve(model.path, log, *arguments, environment=environment) as server:
        tokens, logprobs = server.continued(PROMPT, ANSWER)
    _check(model, dtype, tokens, logprobs)


@pytest.mark.parametrize("name", _runs_on("cpu"))
def test_on_the_cpu(cpu_engine, tiny_model, name):
    """Steps of decoding are replayed, which the engine does where nothing changes by it."""
    assert REPLAYED in score_right(cpu_engine, tiny_model(name), "float32")


@pytest.mark.parametrize("name", SERVED)
def test_served_on_the_cpu(zygote, log, tiny_model, name):
    """With all threads, and over HTTP."""
    _serve(zygote, log, tiny_model(name), "float32", *CPU)
    assert REPLAYED in log.read_text()


@pytest.mark.parametrize("name", _alone_on("cpu"))
def test_on_two_ranks(cpu_engine, tiny_model, name):
    score_right(cpu_engine, tiny_model(name), "float32", tp_size=2)


@pytest.mark.parametrize("name", ["gpt-oss", "deepseek-v3"])
def test_served_on_two_ranks(zygote, log, tiny_model, name):
    arguments = ("float32", *CPU, "--tp-size", "2")
    _serve(zygote, log, tiny_model(name), *arguments, environment=cpu_environment(2))


@pytest.mark.parametrize("name", [name for name in _alone_on("cpu") if name not in ONE_STAGE])
def test_on_two_stages(cpu_engine, tiny_model, name):
    """``test_ranks.py`` shows that others are refused."""
    score_right(cpu_engine, tiny_model(name), "float32", pp_size=2)


@pytest.mark.parametrize("name", TIED)
def test_one_matrix_on_two_stages(cpu_engine, tmp_path, name):
    sizes = {**TINY[name].sizes, "tie_word_embeddings": True}
    model = write_model(tmp_path, replace(TINY[name], sizes=sizes))
    score_right(cpu_engine, model, "float32", pp_size=2)


def test_projections_of_a_net_in_one_tensor(cpu_engine, tmp_path):
    """As older files of Qwen3-Next have them: rows as in the checkpoint."""
    tiny = replace(TINY["qwen3-next"], convert=qwen3next_merged, types={})
    model = write_model(tmp_path, tiny)
    assert "blk.1.ssm_in.weight" in open_gguf(model.path).tensors
    score_right(cpu_engine, model, "float32", tp_size=2)


def _with_zero_row(model: Written, token: int) -> None:
    """Of a token's embedding, as conversion adds for pictures; and keys that nothing takes."""
    tensors = load_file(model.hf / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] = 0
    save_file(tensors, model.hf / "model.safetensors", {"format": "pt"})
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(model.path).tensors}

    def edit(name: str, data: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        if name == "token_embd.weight":
            data = data.copy()
            data[token] = 0
        if name == "blk.4.attn_q.weight":
            unused = [stored[f"blk.2.attn_{part}.weight"] for part in "kv"]
            parts = (gguf.dequantize(part.data, part.tensor_type) for part in unused)
            rows = gguf.quantize(np.concatenate(list(parts)), gguf.GGMLQuantizationType.Q8_0)
            name, data = "blk.4.attn_qkv.weight", np.concatenate([data, rows])
        yield name, data

    unused = {f"blk.3.attn_{part}.weight": np.ones((128, 128), np.float32) for part in "kv"}
    unused["blk.3.attn_k_norm.weight"] = np.ones(64, np.float32)
    whole = model.path.rename(model.path.with_suffix(".whole"))
    rewrite(whole, model.path, edit, tensors=unused)


def test_tensors_as_published_and_a_token_of_pictures(cpu_engine, tmp_path):
    model = write_model(tmp_path, TINY["gemma3n"])
    _with_zero_row(model, PROMPT[3])
    score_right(cpu_engine, model, "float32")


def test_class_that_would_be_wrong(cpu_engine, tiny_model):
    other = {"json_model_override_args": '{"architectures": ["Qwen3NextForCausalLM"]}'}
    with pytest.raises(EngineFailed) as failure:
        cpu_engine.score(tiny_model("qwen3-next").path, PROMPT, 1, **other)
    assert "served by SGLang's class of Qwen3.5" in failure.value.reason


@pytest.mark.parametrize("name", _runs_on("npu"))
def test_on_the_simulated_npu(npu_engine, tiny_model, name):
    score_right(npu_engine, tiny_model(name), TINY[name].npu_dtype)


@pytest.mark.parametrize("name", SERVED)
def test_served_on_the_simulated_npu(npu_zygote, log, tiny_model, name):
    _serve(npu_zygote, log, tiny_model(name), TINY[name].npu_dtype, *NPU_ONE)


@pytest.mark.parametrize("name", _alone_on("npu"))
def test_on_two_ranks_on_the_simulated_npu(npu_engine, tiny_model, name):
    score_right(npu_engine, tiny_model(name), TINY[name].npu_dtype, tp_size=2)


def test_latent_vectors_that_no_operator_takes(npu_engine, tmp_path):
    """Of Mistral Large 3's sizes, whose queries grow with their position: by torch's operators."""
    tiny = TINY["mistral-4"]
    sizes = {"kv_lora_rank": 512, "qk_rope_head_dim": 64}
    model = write_model(tmp_path, replace(tiny, sizes=tiny.sizes | sizes))
    assert "heads are 576 wide" in score_right(npu_engine, model, "float16")


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "mistral-4", "mimo-v2-flash"])
def test_long_prompts_together_on_the_simulated_npu(npu_engine, tiny_model, name):
    """Prompts of several chunks, one of which is a single token, and answers of a batch."""
    tokens = np.random.default_rng(1).integers(3, 500, 257 + 150).tolist()
    prompts = tokens[:257], tokens[257:]
    model, options = tiny_model(name), ANY_DTYPE | {"chunked_prefill_size": 128, "dtype": "float16"}
    with npu_engine.load(model.path, **options) as loaded:
        answers = loaded.continued(prompts, ANSWER)
    for tokens, found in answers:
        assert mean_error(found, model.logprobs(tokens)) <= LIMITS["float16"]
