"""The command a user types, asked with the clients a user has."""

from __future__ import annotations

import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from openai import OpenAI

from serving import CPU, cpu_environment, group_members, launch, wait_for_group_to_end
from srt.entrypoints.test_lifecycle import LOOPBACK, addresses, shared_memory

DATA = Path(__file__).parents[2] / "data"
MODEL = DATA / "qwen3-moe-Q4_K_M.gguf"

#: Greedy answers of two runs are only equal where no two tokens are a rounding apart.
EXACT = ("--dtype", "float32")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "server.log"
    arguments = ("--quantization", "gguf", *CPU, *EXACT)
    # A folder with a name short enough for sockets in it.
    with tempfile.TemporaryDirectory() as temporary:
        environment = cpu_environment() | {"TMPDIR": temporary}
        with launch(MODEL, log, *arguments, environment=environment) as running:
            running.temporary = Path(temporary)
            yield running


@pytest.fixture
def client(server) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60, max_retries=0)


def test_models(client):
    (model,) = client.models.list().data
    assert model.id == str(MODEL)


def test_chat_and_its_stream_agree(client):
    question = {
        "model": "default",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**question)
    parts = client.chat.completions.create(**question, stream=True)
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert whole.usage.completion_tokens == 12
    assert whole.choices[0].finish_reason == "length"
    assert whole.choices[0].message.content == text != ""


def test_completion_with_logprobs(client):
    answer = client.completions.create(
        model="default", prompt="hello", max_tokens=4, temperature=0, logprobs=3
    )
    chosen = answer.choices[0].logprobs
    assert len(chosen.tokens) == 4
    for logprob, top in zip(chosen.token_logprobs, chosen.top_logprobs, strict=True):
        assert max(top.values()) == pytest.approx(logprob, abs=1e-5)


def test_sixteen_at_once_with_a_shared_prefix(server):
    prompts = [[7] * 40 + [100 + i, 200 + i] for i in range(16)]

    def ask(prompt: list[int]) -> list[int]:
        return server.generate(prompt, {"max_new_tokens": 16, "ignore_eos": True})["output_ids"]

    one_by_one = [ask(prompt) for prompt in prompts]
    requests.post(f"{server.url}/flush_cache", timeout=30).raise_for_status()
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, prompts)) == one_by_one


def test_stops_when_interrupted(server):
    """Ctrl-C goes to every process of the terminal, and nothing is left behind."""
    # The last test of the module: there is no server after it.
    pids = group_members(server.pid)
    listening, shared = addresses(pids), shared_memory(pids)
    assert listening and set(listening) <= set(LOOPBACK)
    # More than could end by themselves in the time that they get.
    body = {"text": ["a"] * 16, "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}
    with requests.post(
        f"{server.url}/generate", json=body | {"stream": True}, stream=True
    ) as reply:
        lines = (line for line in reply.iter_lines() if line.startswith(b"data: {"))
        next(lines)
        os.killpg(server.pid, signal.SIGINT)
        assert b"shutting down" in list(lines)[-1]
    assert wait_for_group_to_end(server.pid) == []
    log = server.log.read_text()
    assert "Traceback" not in log[log.index("SIGTERM received") :]
    assert shared and not any(Path(name).exists() for name in shared)
    assert not list(server.temporary.iterdir())
