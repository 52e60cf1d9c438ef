"""Models whose numbers leave their dtype's range: an error for that request, and nobody else's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests

from request_cases import Request, chat, complete, generate, tokens
from rewrite import rewrite
from serving import CPU, NPU, Server

MODEL = Path(__file__).parents[2] / "data" / "qwen3-dense-Q4_K_M.gguf"

#: The token, and its text, whose row of the embedding is infinite in float16.
GREAT, TEXT = 5, "#"


def _model(path: Path) -> Path:
    def edit(name: str, data: np.ndarray):
        if name == "token_embd.weight":
            yield "output.weight", data
            data = data.copy()
            blocks = data[GREAT].reshape(-1, 210 if data.shape[1] % 144 else 144)
            scales = slice(208, 210) if blocks.shape[1] == 210 else slice(0, 2)
            blocks[:, scales] = np.frombuffer(np.float16(65504).tobytes(), np.uint8)
        yield name, data

    rewrite(MODEL, path, edit)
    return path


@pytest.fixture(scope="module", params=["cpu", "npu"])
def server(request, tmp_path_factory) -> Iterator[Server]:
    npu = request.param == "npu"
    zygote = request.getfixturevalue("npu_zygote" if npu else "zygote")
    folder = tmp_path_factory.mktemp("not_finite")
    model = _model(folder / "model.gguf")
    arguments = (*(NPU if npu else CPU), "--dtype", "float16")
    with zygote.serve(model, folder / "server.log", *arguments) as running:
        yield running


BAD = {
    "greedy": tokens([7, GREAT]),
    "sampled": tokens([7, GREAT], {"temperature": 1}),
    "top-k": tokens([7, GREAT], {"temperature": 1, "top_k": 5}),
    "top-k of all": tokens([7, GREAT], {"temperature": 1, "top_k": 500}),
    "top-p": tokens([7, GREAT], {"temperature": 1, "top_p": 0.9}),
    "min-p": tokens([7, GREAT], {"temperature": 1, "min_p": 0.1}),
    "penalties": tokens([7, GREAT], {"repetition_penalty": 1.5, "frequency_penalty": 1}),
    "bias": tokens([7, GREAT], {"logit_bias": {"7": 5}}),
    "grammar": tokens([7, GREAT], {"regex": "[a-z]+"}),
    "log-probabilities": tokens([7, GREAT], return_logprob=True, top_logprobs_num=3),
    "of the prompt": tokens([7, GREAT], return_logprob=True, logprob_start_len=0),
    "of the prompt alone": tokens(
        [7, GREAT, 9], {"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0
    ),
    "several answers": tokens([7, GREAT], {"n": 2, "temperature": 1}),
    "later": tokens([7], {"logit_bias": {str(GREAT): 1000}, "max_new_tokens": 8}),
    "text": complete(prompt=f"a{TEXT}"),
    "chat": chat(messages=[{"role": "user", "content": TEXT}]),
    "score": (
        "/v1/score",
        {"model": "m", "query": TEXT, "items": ["b"], "label_token_ids": [1, 2]},
    ),
}


def _ask(server: Server, case: Request, **options) -> requests.Response:
    path, body = case
    return requests.post(f"{server.url}{path}", json=body | options, timeout=60)


@pytest.mark.parametrize("name", BAD)
def test_no_answer_is_made_of_nan(server, name):
    before = server.log.read_text().count("not finite numbers")
    reply = _ask(server, BAD[name])
    assert reply.status_code == 500, reply.text
    assert "not finite numbers" in reply.text and "--dtype bfloat16" in reply.text
    assert server.log.read_text().count("not finite numbers") > before


@pytest.mark.parametrize("name", ["greedy", "later", "text", "chat", "log-probabilities"])
def test_streams_end_with_an_error(server, name):
    lines = _ask(server, BAD[name], stream=True).text.splitlines()
    events = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert "not finite numbers" in json.dumps(events[-1])
    for event in events:
        assert GREAT in event["output_ids"] or not event["output_ids"] if name == "later" else True


def test_others_do_not_notice(server):
    def good(number: int) -> list[int]:
        sampling = {"max_new_tokens": 40, "ignore_eos": True}
        return server.generate([20 + number, 30], sampling)["output_ids"]

    # One after another in batches of the same sizes: half precision rounds as the batch is.
    with ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(good, range(4)))
        bad = [pool.submit(_ask, server, BAD["sampled"]) for _ in range(4)]
        beside = list(pool.map(good, range(4)))
        assert [reply.result().status_code for reply in bad] == [500] * 4
    same = sum(a == b for a, b in zip(alone, beside, strict=True))
    assert same >= 3


def test_embeddings(zygote, log, tmp_path):
    arguments = (*CPU, "--dtype", "float16", "--is-embedding")
    with zygote.serve(_model(tmp_path / "model.gguf"), log, *arguments) as server:
        texts = ["/v1/embeddings", {"model": "m", "input": ["a", f"a{TEXT}"]}]
        reply = _ask(server, tuple(texts))
        assert reply.status_code == 500 and "not finite numbers" in reply.text
        texts[1]["input"] = ["a", "b"]
        assert _ask(server, tuple(texts)).status_code == 200


def test_great_norm(zygote, log, tmp_path):
    """All logits overflow, in float32 too: the message does not blame float16."""

    def edit(name: str, data: np.ndarray):
        yield name, np.full_like(data, 3e38) if name == "output_norm.weight" else data

    rewrite(MODEL, tmp_path / "model.gguf", edit)
    with zygote.serve(tmp_path / "model.gguf", log, *CPU, "--dtype", "float32") as server:
        for temperature in (0, 1):
            reply = _ask(server, generate({"temperature": temperature}))
            assert reply.status_code == 500
            assert "not finite numbers" in reply.text and "float16" not in reply.text
