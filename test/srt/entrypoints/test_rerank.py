"""Rerankers: what a file's head says of a query and a document is what transformers says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import requests
import torch
from gguf import GGUFValueType as Type

from ascend_gguf import load_tokenizer
from random_model import PROMPT, read_model
from rewrite import rewrite
from serving import CPU

MODEL = Path(__file__).parents[2] / "data" / "qwen3-dense-Q4_K_M.gguf"

#: The tokens that stand for yes and no: of a tied model the head is their rows of the embedding.
LABELS = (57, 58)
PROMPT_OF_FILE = (
    "<|im_start|>system\nJudge whether the Document answers the Query.<|im_end|>\n"
    "<|im_start|>user\n<Instruct>: Find it\n<Query>: {query}\n<Document>: {document}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
QUERY = "What is the capital of China? {document}"
DOCUMENTS = ["Beijing is the capital of {query}.", "Gravity is a force.", r"\g<0> \1", "北京"]


def write_reranker(path: Path, **keys: tuple) -> Path:
    """A file as llama.cpp's converter and quantizer write it; ``keys`` to add or set."""
    keys = {
        "qwen3.pooling_type": (4, Type.UINT32),
        "qwen3.classifier.output_labels": (["yes", "no"], Type.ARRAY, Type.STRING),
        "tokenizer.chat_template.rerank": (PROMPT_OF_FILE, Type.STRING),
        **{name.replace("__", "."): value for name, value in keys.items()},
    }

    def edit(name, data):
        yield name, data
        if name == "token_embd.weight":
            yield "cls.output.weight", data[list(LABELS)]

    rewrite(MODEL, path, edit, keys=keys)
    return path


@pytest.fixture(scope="module")
def labels():
    """Tokens of a prompt to the probabilities of yes and no after it, by transformers."""
    model = read_model(MODEL).in_transformers()

    def probabilities(tokens) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([list(tokens)])).logits[0, -1]
        return logits[list(LABELS)].double().softmax(-1).tolist()

    return probabilities


@pytest.fixture(scope="module")
def server(zygote, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reranker")
    path = write_reranker(folder / "model.gguf")
    with zygote.serve(path, folder / "log", *CPU, "--dtype", "float32") as server:
        yield server


def _post(server, route: str, body: dict) -> requests.Response:
    return requests.post(server.url + route, json=body, timeout=60)


def _rerank(server, **body) -> list[dict]:
    reply = _post(server, "/v1/rerank", {"query": QUERY, "documents": DOCUMENTS} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def _expected(labels, instruction: str = "Find it", documents=DOCUMENTS) -> list[float]:
    tokenizer = load_tokenizer(MODEL)
    head, middle, tail = re.split(r"\{query\}|\{document\}", PROMPT_OF_FILE)
    head = head.replace("Find it", instruction)
    prompts = [head + QUERY + middle + document + tail for document in documents]
    return [labels(tokenizer.encode(prompt))[0] for prompt in prompts]


def test_scores(server, labels):
    expected = _expected(labels)
    answers = _rerank(server)
    assert [answer["index"] for answer in answers] == list(np.argsort(expected)[::-1])
    for answer in answers:
        assert abs(answer["score"] - expected[answer["index"]]) <= 1e-5
        assert answer["document"] == DOCUMENTS[answer["index"]]
        assert answer["meta_info"]["prompt_tokens"] > 50
    (best,) = _rerank(server, top_n=1, return_documents=False)
    assert best["index"] == answers[0]["index"] and "document" not in best
    parts = [{"type": "text", "text": QUERY}]
    (alone,) = _rerank(server, query=parts, documents=DOCUMENTS[1:2])
    assert abs(alone["score"] - expected[1]) <= 1e-5


def test_an_instruction_of_the_request(server, labels):
    instruction = r"Rank {query} by \1 taste"
    expected = _expected(labels, instruction)
    for answer in _rerank(server, instruct=instruction):
        assert abs(answer["score"] - expected[answer["index"]]) <= 1e-5


def test_other_routes_give_the_same_labels(server, labels):
    expected = labels(PROMPT)
    asked = {"model": "m", "query": PROMPT[:9], "items": [PROMPT[9:]], "apply_softmax": True}
    (scores,) = _post(server, "/v1/score", asked).json()["scores"]
    (label,) = _post(server, "/v1/classify", {"model": "m", "input": PROMPT}).json()["data"]
    assert np.abs(np.subtract([scores, label["probs"]], [expected] * 2)).max() <= 1e-5
    assert label["label"] == ("yes", "no")[int(np.argmax(expected))]


def test_what_a_reranker_does_not_do(server):
    picture = [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    for route, body, says in (
        ("/v1/rerank", {"query": "q", "documents": [picture]}, "documents: this is a text model"),
        ("/v1/rerank", {"query": "q", "documents": ["d"] * 3000}, "documents: too many"),
        ("/v1/rerank", {"query": "q", "documents": ["d " * 9999]}, "documents: too long"),
        ("/v1/completions", {"model": "m", "prompt": "hello"}, "writes no text"),
        ("/generate", {"text": "hello"}, "no text"),
    ):
        reply = _post(server, route, body)
        assert reply.status_code == 400 and says in reply.text, reply.text
    assert _rerank(server)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_on_the_simulated_npu(npu_engine, tmp_path, labels, dtype):
    path = write_reranker(tmp_path / "model.gguf")
    with npu_engine.load(path, dtype=dtype) as served:
        found = torch.tensor(served.embed([PROMPT, PROMPT[:20]])).softmax(-1)
    expected = torch.tensor([labels(PROMPT), labels(PROMPT[:20])])
    error = (found - expected).abs().max()
    print(f"error of the probabilities: {error:.1e}")
    assert error <= {"float16": 5e-3, "bfloat16": 2e-2}[dtype]
