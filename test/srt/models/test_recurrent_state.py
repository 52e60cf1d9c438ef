"""Models that keep a state of each request, not its keys and values: it is nobody else's.

One server with short chunks of prompts, and one on the simulated NPU; everything is compared with
transformers in float32.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import requests

from hf_models import TINY
from serving import CPU, Server, mean_error, told, typical_error

#: Mean error of log-probabilities.
LIMIT = 1e-5
#: Tokens of an answer.
ANSWER = 6

TOKENS = np.random.default_rng(3).integers(3, 500, 400).tolist()
#: Of several chunks, and shared by others.
LONG = TOKENS[:150]


@pytest.fixture(scope="module", params=["qwen3.5", "lfm2", "granite-4-dense", "kimi-linear"])
def model(request, tiny_model):
    return tiny_model(request.param)


@pytest.fixture(scope="module")
def server(zygote, model, tmp_path_factory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("recurrent") / "server.log"
    arguments = (*CPU, "--dtype", "float32", "--skip-tokenizer-init")
    with zygote.serve(model.path, log, *arguments, "--chunked-prefill-size", "64") as running:
        yield running


def check(server: Server, model, prompt: list[int]) -> None:
    tokens, logprobs = server.continued(prompt, ANSWER)
    expected = model.logprobs(tokens)
    assert mean_error(logprobs[:-ANSWER], expected[:-ANSWER]) <= LIMIT
    assert mean_error(logprobs[-ANSWER:], expected[-ANSWER:]) <= LIMIT


def test_a_prompt_of_several_chunks(server, model):
    check(server, model, LONG)


def test_behind_a_prompt_in_the_cache(server, model):
    server.generate(LONG, {"max_new_tokens": 1})
    for more in (20, 90):
        prompt = LONG + TOKENS[200 : 200 + more]
        options = {"return_logprob": True, "logprob_start_len": len(LONG)}
        meta = server.generate(prompt, {"max_new_tokens": 1}, **options)["meta_info"]
        found = [value for value, *_ in meta["input_token_logprobs"]][1:]
        assert meta["cached_tokens"] == len(LONG)
        assert mean_error(found, model.logprobs(prompt)[len(LONG) :]) <= LIMIT


def test_sixteen_at_once(server, model):
    """Of all lengths, some with a shared beginning, and with a request that is given up."""

    def give_up() -> None:
        body = {"input_ids": TOKENS[:70], "rid": "given up", "stream": True}
        body["sampling_params"] = {"max_new_tokens": 1500, "ignore_eos": True}
        with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=60) as reply:
            next(reply.iter_lines())

    prompts = [LONG[: 9 * i + 5] + TOKENS[300 + i : 340] for i in range(16)]
    lost = [threading.Thread(target=give_up) for _ in range(3)]
    for thread in lost:
        thread.start()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda prompt: check(server, model, prompt), prompts))
    for thread in lost:
        thread.join()
    check(server, model, LONG[:77])


#: For the simulated NPU, as :func:`typical_error` has it.
NPU_LIMITS = {"float16": 0.005, "bfloat16": 0.03}
NPU_OPTIONS = {
    "chunked_prefill_size": 512,
    "max_total_tokens": 16384,
    "max_running_requests": 16,
    "cuda_graph_bs_decode": 16,
}


@pytest.mark.parametrize("name", ["lfm2", "granite-4-dense", "mamba2"])
def test_on_the_simulated_npu(npu_engine, tiny_model, name):
    """States are kept at the ends of pages and chunks, of prompts and of answers."""
    model, dtype = tiny_model(name), TINY[name].npu_dtype
    draw = np.random.default_rng(3).integers(3, 500, 1200).tolist()

    def check_answers(found: list[tuple[list[int], list[float]]]) -> None:
        for tokens, logprobs in found:
            expected = model.logprobs(tokens)[-len(logprobs) :]
            errors = np.abs(np.subtract(logprobs, expected))
            assert typical_error(errors[-ANSWER:], dtype) <= NPU_LIMITS[dtype]
            assert typical_error(errors, dtype) <= NPU_LIMITS[dtype]

    def check_cached(loaded, prompt: list[int], start: int, least: int) -> None:
        answer = loaded.generate(
            input_ids=prompt,
            sampling_params={"max_new_tokens": ANSWER, "ignore_eos": True, "temperature": 0},
            return_logprob=True,
            logprob_start_len=start,
        )
        assert answer["meta_info"]["cached_tokens"] >= least
        check_answers([(prompt + answer["output_ids"], told(answer))])

    with npu_engine.load(model.path, dtype=dtype, **NPU_OPTIONS) as loaded:
        check_answers(loaded.continued([draw[:700]], ANSWER))
        for more in (20, 300):
            check_cached(loaded, draw[:700] + draw[900 : 900 + more], 700, 512)
        answered = loaded.continued([draw[500:740]], 30)
        check_answers(answered)
        check_cached(loaded, answered[0][0] + draw[:10], 270, 256)
        prompts = [draw[: 33 * i + 5] + draw[1000 + i : 1040] for i in range(16)]
        check_answers(loaded.continued(prompts, ANSWER))
