"""Every architecture of the table, served and compared with transformers in float32."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest

from hf_models import TINY, Written
from random_model import PROMPT
from serving import CPU, NPU_ONE, cpu_environment, mean_error

#: Tokens of an answer, which other code computes than those of a prompt.
ANSWER = 12

#: Error of the log-probabilities of a prompt's tokens, and of the answer's: the mean, and in
#: bfloat16 the median, as single tokens may meet other experts whose logits nearly tie.
LIMITS = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.03}

#: Small random models stay in float16's range, whatever their architecture is known for.
ANY_DTYPE = ("--model-loader-extra-config", '{"float16": "allow"}')

#: What the server writes when a step has been replayed and compared with the model's own.
REPLAYED = "Decode steps of 1 are replayed."

#: Biases of experts, matrices joined while loading, and projections that are one in the file.
ON_TWO_RANKS = ("gpt-oss", "deepseek-v3", "phi3")


def _served_on(device: str) -> list[str]:
    return [name for name, tiny in TINY.items() if device not in tiny.refused]


def _check(zygote, log, model: Written, dtype: str, *arguments: str, environment=None) -> None:
    # The prompt is given as token ids; these files have another model's tokenizer.
    arguments = (*arguments, "--dtype", dtype, "--skip-tokenizer-init")
    with zygote.serve(model.path, log, *arguments, environment=environment) as server:
        tokens, found = server.continued(PROMPT, ANSWER)
    errors = [abs(f - e) for f, e in zip(found, model.logprobs(tokens), strict=True)]
    typical = np.median if dtype == "bfloat16" else np.mean
    prompt, answer = typical(errors[:-ANSWER]), typical(errors[-ANSWER:])
    print(f"absolute error of log-probabilities: prompt {prompt:.2e}, answer {answer:.2e}")
    assert max(prompt, answer) <= LIMITS[dtype]


@pytest.mark.parametrize("name", _served_on("cpu"))
def test_on_the_cpu(zygote, log, tiny_model, name):
    """Steps of decoding are replayed, which the server does where nothing changes by it."""
    _check(zygote, log, tiny_model(name), "float32", *CPU)
    assert REPLAYED in log.read_text()


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])  # capped scores, windows alone
def test_long_prompts_together_on_the_simulated_npu(npu_zygote, log, tiny_model, name):
    """Prompts of several chunks, one of which is a single token, and answers of a batch."""
    tokens = np.random.default_rng(1).integers(3, 500, 257 + 150).tolist()
    prompts = tokens[:257], tokens[257:]
    model, arguments = tiny_model(name), (*NPU_ONE, "--chunked-prefill-size", "128")
    arguments = (*arguments, "--dtype", "float16", *ANY_DTYPE, "--skip-tokenizer-init")
    with npu_zygote.serve(model.path, log, *arguments) as server, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda prompt: server.continued(prompt, ANSWER), prompts))
    for tokens, found in answers:
        assert mean_error(found, model.logprobs(tokens)) <= LIMITS["float16"]


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_on_two_ranks(zygote, log, tiny_model, name):
    arguments = ("float32", *CPU, "--tp-size", "2")
    _check(zygote, log, tiny_model(name), *arguments, environment=cpu_environment(2))


@pytest.mark.parametrize("name", _served_on("npu"))
def test_on_the_simulated_npu(npu_zygote, log, tiny_model, name):
    _check(npu_zygote, log, tiny_model(name), TINY[name].npu_dtype, *NPU_ONE, *ANY_DTYPE)


def test_no_linear_attention_on_the_cpu():
    """Why ``qwen3next`` is refused there: the row of docs/models.md goes when this fails."""
    with pytest.raises(AttributeError, match="sgl_kernel.*delta_rule"):
        import_module("sglang.srt.layers.attention.linear.gdn_backend")
