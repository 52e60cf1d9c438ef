"""Requests of other people: one that cannot be served is refused, and nobody else notices it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import requests

from request_cases import OPERATIONS, Request, answered, generate, refused
from serving import CPU, NPU_ONE, Server, group_members

MODEL = Path(__file__).parents[1] / "data" / "qwen3-dense-Q4_K_M.gguf"
VOCAB = 512

#: Answers that go on while the requests come, and the tokens of each.
STREAMS, LONG = 16, 100

#: In half precision a batch rounds as it is put together: tokens a rounding apart may swap.
EQUAL_IN_HALF = 12

#: For the streams, and as many more.
ROOM = ("--max-total-tokens", "16384", "--max-running-requests", "32")

#: Seconds within which each request has an answer.
PATIENCE = 30

#: Memory that a round of all the requests may take, once the server has seen them, and the rounds
#: in which it comes to that.
MOST_GROWTH, ROUNDS = 20 << 20, 5


@pytest.fixture(scope="module", params=["cpu", "npu"])
def server(request, tmp_path_factory) -> Iterator[Server]:
    npu = request.param == "npu"
    zygote = request.getfixturevalue("npu_zygote" if npu else "zygote")
    folder = tmp_path_factory.mktemp(f"requests_{request.param}")
    log, profiles = folder / "server.log", {"SGLANG_TORCH_PROFILER_DIR": str(folder)}
    arguments = (*NPU_ONE, "--dtype", "float16") if npu else (*CPU, "--dtype", "float32")
    with zygote.serve(MODEL, log, *arguments, *ROOM, environment=profiles) as running:
        yield running
    Path("profiler_info_0.json").unlink(missing_ok=True)  # torch_npu writes it wherever it is


def _ask(server: Server, case: Request) -> requests.Response:
    path, body = case
    data = json.dumps(body)
    headers = {"content-type": "application/json"}
    return requests.post(f"{server.url}{path}", data=data, headers=headers, timeout=PATIENCE)


def _stream(server: Server, number: int) -> list[int]:
    """The tokens of a long answer, as they come."""
    sampling = {"max_new_tokens": LONG, "temperature": 0, "ignore_eos": True}
    body = {"input_ids": [7 + number, 8, 9], "sampling_params": sampling, "stream": True}
    found: list[int] = []
    with requests.post(f"{server.url}/generate", json=body, stream=True, timeout=300) as reply:
        for line in reply.iter_lines():
            if line.startswith(b"data: {"):
                found = json.loads(line[6:])["output_ids"]
    return found


@contextmanager
def _beside_streams(server: Server) -> Iterator[None]:
    """Other people's answers, which are those that they get alone."""
    with ThreadPoolExecutor(STREAMS) as pool:
        alone = list(pool.map(lambda number: _stream(server, number), range(STREAMS)))
        streams = pool.map(lambda number: _stream(server, number), range(STREAMS))
        yield
        beside = list(streams)
    assert [len(tokens) for tokens in beside] == [LONG] * STREAMS
    same = sum(a == b for a, b in zip(alone, beside, strict=True))
    print(f"{same} of {STREAMS} streams are the same as alone")
    assert same >= (EQUAL_IN_HALF if "npu" in server.log.parent.name else STREAMS)


def _refused() -> list[tuple[str, Request]]:
    return [(field, case) for field, cases in refused(VOCAB).items() for case in cases]


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

    return min((time.sleep(0.5), now())[1] for _ in range(8))


def test_one_by_one(server):
    wrong = [line for field, case in _refused() for line in _wrong(field, _ask(server, case))]
    replies = [_ask(server, case) for case in answered(VOCAB)]
    wrong += [reply.text for reply in replies if reply.status_code != 200]
    assert not wrong


def test_operations(server):
    """What the engine's handlers raise is the answer."""
    for case in OPERATIONS:
        _ask(server, case)
    assert _ask(server, generate()).status_code == 200


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


def _all_at_once(server: Server) -> int:
    with _beside_streams(server), ThreadPoolExecutor(16) as pool:
        bad = list(pool.map(lambda one: (one[0], _ask(server, one[1])), _refused()))
        good = list(pool.map(lambda case: _ask(server, case), answered(VOCAB)))
    assert not [line for field, reply in bad for line in _wrong(field, reply)]
    assert {reply.status_code for reply in good} == {200}
    return len(bad) + len(good)
