"""Requests of other people: one that cannot be served is refused, and nobody else notices it.

``FULL=1`` in the environment asks a real model too.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from ascend_gguf import open_gguf
from needs import fetched
from real_models import MODELS
from request_cases import OPERATIONS, Request, answered, chat, complete, generate, refused
from serving import CPU, NPU_ONE, Server, group_members

TINY = Path(__file__).parents[2] / "data" / "qwen3-dense-Q4_K_M.gguf"

#: Answers that go on while the requests come.
STREAMS = 16

#: In half precision a batch rounds as it is put together: of tokens as near as this (log p) the
#: other may be taken.
NEARLY_TIED = 0.05

#: For the streams, and as many more.  The cache takes memory when its places are first used: of a
#: real model it is small enough for the first round to use all of them.
ROOM = {
    "tiny": ("--max-total-tokens", "16384", "--max-running-requests", "32"),
    "smollm2": ("--max-total-tokens", "4096", "--max-running-requests", "32"),
}

#: Bodies that fit no route.
ODD_BODIES = (
    *(b"", b"{", b"[]", b"null", b"{}", b'{"a": NaN}', b"[" * 3000 + b"]" * 3000),
    *(b'{"text": "\xff"}', b'{"prompt": "\\ud800", "text": "\\ud800"}'),
    b'{"text": "' + b"x" * 100_000 + b'"}',
)

#: Answers of characters that are several tokens each, where a route has a way to ask for them.
LETTERS = "\u65e5\u00e9\U0001f600" * 2
_REGEX = {"regex": LETTERS}
_CHAT = {"model": "m", "messages": [{"role": "user", "content": "one"}]}
_OPTIONS = {"options": {"num_predict": 20, "temperature": 0}}


def _of_choice(answer: dict) -> str:
    (choice,) = answer["choices"] or [{}]
    part = choice.get("message") or choice.get("delta") or choice
    return part.get("content") or part.get("text") or ""


def _of_ollama(answer: dict) -> str:
    return answer.get("response") or (answer.get("message") or {}).get("content", "")


#: A route that streams, a request, and what reads the text of an answer or a part of one.
STREAMED = {
    "generate": (
        "/generate",
        {"text": "a", "sampling_params": {"max_new_tokens": 20, "temperature": 0} | _REGEX},
        lambda answer: answer["text"],
    ),
    "completions": (*complete(max_tokens=20, **_REGEX), _of_choice),
    "chat": (*chat(max_tokens=20, **_REGEX), _of_choice),
    "ollama": ("/api/generate", {"model": "m", "prompt": "one"} | _OPTIONS, _of_ollama),
    "ollama chat": ("/api/chat", _CHAT | _OPTIONS, _of_ollama),
}

#: Memory that a round of all the requests may take, once the server has seen them, and the rounds
#: in which it comes to that.
MOST_GROWTH, ROUNDS = 20 << 20, 5


SUBJECTS = [("tiny", "cpu"), ("tiny", "npu")]
if os.environ.get("FULL"):
    SUBJECTS += [("smollm2", "cpu"), ("smollm2", "npu")]


@dataclass
class Subject(Server):
    """A server of a model.

    Attributes:
        vocab: rows of its embedding.
        npu: it is on the simulated one.
        long: tokens of a stream.
        patience: seconds within which each request has an answer.
    """

    vocab: int
    npu: bool
    long: int = 100
    patience: int = 30


@pytest.fixture(scope="module", params=SUBJECTS, ids="-".join)
def server(request, tmp_path_factory) -> Iterator[Subject]:
    name, device = request.param
    real = MODELS["smollm2-135m-Q4_1"]
    model, vocab = (TINY, 512) if name == "tiny" else (fetched(lambda: real.path), 49152)
    npu = device == "npu"
    zygote = request.getfixturevalue("npu_zygote" if npu else "zygote")
    folder = tmp_path_factory.mktemp(f"requests_{name}_{device}")
    log, profiles = folder / "server.log", {"SGLANG_TORCH_PROFILER_DIR": str(folder)}
    arguments = (*NPU_ONE, "--dtype", "float16") if npu else (*CPU, "--dtype", "float32")
    arguments += (*ROOM[name], "--enable-metrics")
    with zygote.serve(model, log, *arguments, environment=profiles) as running:
        # A step takes the simulated NPU long, and of a real model a second and more.
        pace = {"long": 40, "patience": 30 if name == "tiny" else 240} if npu else {}
        yield Subject(running.url, running.pid, running.log, vocab, npu, **pace)
    Path("profiler_info_0.json").unlink(missing_ok=True)  # torch_npu writes it wherever it is


def _ask(server: Subject, case: Request) -> requests.Response:
    path, body = case
    data = json.dumps(body)
    headers = {"content-type": "application/json"}
    return requests.post(f"{server.url}{path}", data=data, headers=headers, timeout=server.patience)


def _prompt(number: int) -> list[int]:
    return [7 + number, 8, 9]


def _stream(server: Subject, number: int) -> list[int]:
    """The tokens of a long answer, as they come."""
    sampling = {"max_new_tokens": server.long, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": _prompt(number), "sampling_params": sampling, "stream": True}
    found: list[int] = []
    with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=900) as reply:
        for line in reply.iter_lines():
            if line.startswith(b"data: {"):
                found = json.loads(line[6:])["output_ids"]
    return found


@contextmanager
def _beside_streams(server: Subject) -> Iterator[None]:
    """Other people's answers, which are those that they get alone."""
    with ThreadPoolExecutor(STREAMS) as pool:
        alone = list(pool.map(lambda number: _stream(server, number), range(STREAMS)))
        streams = pool.map(lambda number: _stream(server, number), range(STREAMS))
        yield
        beside = list(streams)
    assert [len(tokens) for tokens in beside] == [server.long] * STREAMS
    other = [number for number in range(STREAMS) if alone[number] != beside[number]]
    ties = [_undecided(server, number, alone[number], beside[number]) for number in other]
    print(
        f"{STREAMS - len(other)} of {STREAMS} streams are the same as alone; ties of others: {ties}"
    )
    assert not other or (server.npu and max(ties) < NEARLY_TIED)


def _undecided(server: Subject, number: int, alone: list[int], beside: list[int]) -> float:
    """How much the best token beats the next, where two answers part."""
    common = next(place for place in range(server.long) if alone[place] != beside[place])
    options = {"return_logprob": True, "top_logprobs_num": 2}
    prompt = [*_prompt(number), *alone[:common]]
    answer = server.generate(prompt, {"max_new_tokens": 1}, **options)
    ((best, following),) = answer["meta_info"]["output_top_logprobs"]
    return best[0] - following[0]


def _refused(vocab: int) -> list[tuple[str, Request]]:
    return [(field, case) for field, cases in refused(vocab).items() for case in cases]


def _wrong(field: str, reply: requests.Response) -> list[str]:
    """What is wrong with the answer to a request that is to be refused by a field."""
    refused = reply.status_code == 400 and field in reply.text
    return [] if refused else [f"{field}: {reply.status_code} {reply.text[:200]}"]


def _memory(server: Server) -> int:
    """Bytes of all processes of the server, once what they were still at is done.

    Pages that a process shares with the one it was forked from count too: the first write to such a
    page makes it the process's own, which is no memory that a request took.
    """

    def now() -> int:
        of = [psutil.Process(pid).memory_info() for pid in group_members(server.pid)]
        return sum(memory.rss - memory.shared for memory in of)

    lowest, since = now(), 0
    while since < 3:
        time.sleep(0.5)
        found = now()
        lowest, since = (found, 0) if found < lowest else (lowest, since + 1)
    return lowest


def _metrics(server: Subject) -> dict[tuple[str, frozenset], float]:
    """The numbers of ``/metrics``, by name and labels."""
    text = requests.get(f"{server.url}/metrics", timeout=server.patience).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_numbers_for_those_who_watch(server):
    """``/server_info``, by its old name too, and ``/metrics`` tell of the weights, and of steps."""
    model = next(iter(requests.get(f"{server.url}/v1/models", timeout=60).json()["data"]))["id"]
    server.generate(_prompt(0), {"max_new_tokens": 20, "ignore_eos": True})
    for route in ("server_info", "get_server_info"):
        info = requests.get(f"{server.url}/{route}", timeout=server.patience).json()
        ((path, found),) = info["internal_states"][0]["gguf"].items()
        assert path == model
    weights = sum(np.prod(tensor.shape) for tensor in open_gguf(path).tensors.values())
    assert sum(of["weights"] for of in found["layouts"].values()) == weights
    assert found["layouts"].keys() >= ({"int4", "vectors"} if server.npu else {"blocks", "vectors"})
    assert found["seconds"].keys() == {"weights", "self_check"}
    assert found["self_check"]["passed"] > 2 and found["self_check"]["failed"] == 0

    told = _metrics(server)
    own = {"model": Path(path).name, "tp_rank": "0", "pp_rank": "0"}
    expected = [
        *(("weights_bytes", "layout", name, of["bytes"]) for name, of in found["layouts"].items()),
        *(("load_seconds", "part", name, value) for name, value in found["seconds"].items()),
        *(("self_check_shapes", "result", name, n) for name, n in found["self_check"].items()),
    ]
    for name, label, of, value in expected:
        labels = frozenset({**own, label: of}.items())
        assert told[f"ascend_gguf:{name}", labels] == pytest.approx(value)
    steps = {
        dict(labels)["mode"]: value
        for (name, labels), value in told.items()
        if name == "sglang:cuda_graph_passes_total"
    }
    assert steps["decode_cuda_graph"] >= 15 and steps["prefill_none"] >= 1


def test_one_by_one(server):
    cases = _refused(server.vocab)
    wrong = [line for field, case in cases for line in _wrong(field, _ask(server, case))]
    replies = [_ask(server, case) for case in answered(server.vocab)]
    wrong += [reply.text for reply in replies if reply.status_code != 200]
    assert not wrong


def test_operations(server):
    """What the engine's handlers raise is the answer."""
    for case in OPERATIONS:
        _ask(server, case)
    assert _ask(server, generate()).status_code == 200


# Routes do not know the device, and some take long on the simulated one.
@pytest.mark.parametrize(
    "server", [s for s in SUBJECTS if s[1] == "cpu"], ids="-".join, indirect=True, scope="module"
)
def test_every_route(server):
    """Whatever a body is, the answer is no error of the server's."""
    paths = requests.get(f"{server.url}/openapi.json", timeout=server.patience).json()["paths"]
    routes = [
        (path, method)
        for path, methods in paths.items()
        for method in methods
        if "profile" not in path  # test_operations asks those
    ]
    assert len(routes) > 80

    def ask(method: str, path: str, body: bytes) -> str | None:
        headers = {"content-type": "application/json"}
        reply = requests.request(
            method, f"{server.url}{path}", data=body, headers=headers, timeout=server.patience
        )
        fine = reply.ok or (reply.status_code < 500 and len(reply.content) < 20000)
        return (
            None if fine else f"{method} {path} {body[:40]}: {reply.status_code} {reply.text[:99]}"
        )

    for number, body in enumerate(ODD_BODIES):
        # What has no body is asked once: some of it takes a second.
        now = [route for route in routes if route[1] != "get" or not number]
        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, method, path, body) for path, method in now]
        wrong = [one.result() for one in asked]
        _ask(server, ("/continue_generation", {}))
        assert not [line for line in wrong if line]
    assert _ask(server, generate()).status_code == 200


def _parts(server: Server, path: str, body: dict, text_of) -> list[str]:
    """The texts of a stream's events."""
    with requests.post(f"{server.url}{path}", json=body | {"stream": True}, stream=True) as reply:
        lines = [line.removeprefix(b"data: ") for line in reply.iter_lines()]
    parts = [text_of(json.loads(line)) for line in lines if line.startswith(b"{")]
    if path != "/generate":
        return parts
    return [after.removeprefix(before) for before, after in pairwise(["", *parts])]


@pytest.mark.parametrize("kind", STREAMED)
def test_streams_are_whole(server, kind):
    """A character of several tokens comes when it is whole, and nothing is left out."""
    path, body, text_of = STREAMED[kind]
    whole = text_of(_ask(server, (path, body | {"stream": False})).json())
    parts = _parts(server, path, body, text_of)
    assert whole and "".join(parts) == whole
    if "regex" in json.dumps(body):
        assert whole == LETTERS and sum(map(bool, parts)) > 1


def test_prompts_that_end_inside_a_character(server):
    tokenize = {"model": "m", "prompt": "a\u00e9", "add_special_tokens": False}
    *start, end = _ask(server, ("/v1/tokenize", tokenize)).json()["tokens"]
    forced = {"logit_bias": {str(end): 100}, "temperature": 0}
    for path, body, text_of in (
        (
            "/generate",
            {"input_ids": start, "sampling_params": forced | {"max_new_tokens": 1}},
            lambda answer: answer["text"],
        ),
        ("/v1/completions", {"model": "m", "prompt": start, "max_tokens": 1} | forced, _of_choice),
    ):
        assert text_of(_ask(server, (path, body)).json()) == "\u00e9"
        assert "".join(_parts(server, path, body, text_of)) == "\u00e9"


def test_an_abort_is_of_one_request(server):
    """Not of all whose names begin alike, as those that count do."""
    endless = {"max_new_tokens": 2000, "temperature": 0, "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        sampling = endless | {"max_new_tokens": 100}
        ten = pool.submit(_ask, server, generate(sampling, rid="user10"))
        path, body = generate(endless, rid="user1", stream=True)
        with requests.post(f"{server.url}{path}", json=body, stream=True) as reply:
            lines = (line[6:] for line in reply.iter_lines() if line.startswith(b"data: {"))
            next(lines)
            _ask(server, ("/abort_request", {"rid": "user1"}))
            one = json.loads(list(lines)[-1])
    reasons = [
        answer["meta_info"]["finish_reason"]["type"] for answer in (one, ten.result().json())
    ]
    assert reasons == ["abort", "length"]


def test_all_at_once_beside_streams(server):
    """The memory that so many at once need is taken in the first rounds, and then no more."""
    before = _memory(server)
    for number in range(ROUNDS):
        count = _all_at_once(server)
        growth = _memory(server) - before
        print(f"{count} requests beside {STREAMS} streams: {growth / 2**20:.1f} MiB")
        if number and growth <= MOST_GROWTH:
            return
        before += growth
    raise AssertionError(f"each of {ROUNDS} rounds takes more than {MOST_GROWTH} bytes")


def _all_at_once(server: Subject) -> int:
    with _beside_streams(server), ThreadPoolExecutor(16) as pool:
        bad = list(pool.map(lambda one: (one[0], _ask(server, one[1])), _refused(server.vocab)))
        good = list(pool.map(lambda case: _ask(server, case), answered(server.vocab)))
    assert not [line for field, reply in bad for line in _wrong(field, reply)]
    assert {reply.status_code for reply in good} == {200}
    return len(bad) + len(good)
