"""How a server comes and goes: its port, who may reach it, how it ends, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from demo import free_port
from serving import (
    CPU,
    cpu_environment,
    group_members,
    status_at_end,
    wait_for_group_to_end,
)

MODEL = Path(__file__).parents[2] / "data" / "counting" / "moe-Q4_K_M.gguf"
LONG = {"temperature": 0, "max_new_tokens": 1900, "ignore_eos": True}
LOOPBACK = ("0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F")


def addresses(pids: list[int]) -> list[str]:
    """Addresses, as /proc has them, at which the processes listen."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(entry))
            except OSError:
                continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and f"socket:[{rest[5]}]" in sockets:
                found.append(local.split(":")[0])
    return found


def shared_memory(pids: list[int]) -> set[str]:
    """Files in shared memory that the processes use."""
    maps = (Path(f"/proc/{pid}/maps").read_text() for pid in pids)
    return {
        line.split()[-1] for text in maps for line in text.splitlines() if "/dev/shm/sgl" in line
    }


class _Stream(threading.Thread):
    """A client that reads an answer as it comes."""

    def __init__(self, url: str, body: dict) -> None:
        super().__init__()
        self.url, self.body = url, body
        self.events: list[dict] = []

    def run(self) -> None:
        with requests.post(self.url, json=self.body | {"stream": True}, stream=True) as reply:
            for line in reply.iter_lines():
                data = line.removeprefix(b"data: ")
                if data.startswith(b"{"):
                    self.events.append(json.loads(data))


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a name short enough for sockets in it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_a_server_of_two_ranks_ends_when_told_to(zygote, log, temporary):
    """Streams end with an error, nobody outside could connect, and nothing is left behind.

    ``test_server.py`` shows that of one that is started from nothing.
    """
    environment = cpu_environment(2) | {"TMPDIR": str(temporary)}
    with zygote.serve(MODEL, log, *CPU, "--tp-size", "2", environment=environment) as server:
        pids = group_members(server.pid)
        listening = addresses(pids)
        shared = shared_memory(pids)
        streams = [
            _Stream(f"{server.url}/generate", {"text": ["1 + 1"] * 8, "sampling_params": LONG}),
            _Stream(
                f"{server.url}/v1/completions",
                {"model": "m", "prompt": ["2 + 2"] * 8, "max_tokens": 1900, "ignore_eos": True},
            ),
        ]
        for stream in streams:
            stream.start()
        deadline = time.monotonic() + 60
        while not all(stream.events for stream in streams) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(server.pid, signal.SIGTERM)
        told = time.monotonic()
        for stream in streams:
            stream.join(20)
        took = time.monotonic() - told
        rest = wait_for_group_to_end(server.pid, patience=30)
    assert len(listening) >= 3 and set(listening) <= set(LOOPBACK)
    assert took < 10
    for stream in streams:
        assert "shutting down" in json.dumps(stream.events[-1])
    assert not rest
    assert shared and not any(Path(name).exists() for name in shared)
    assert not list(temporary.iterdir())


def test_several_processes_answer_as_one_does(zygote, log, temporary):
    """uvicorn starts them, and the engine's own would load no plugins: what is wrong is said."""
    workers = ("--tokenizer-worker-num", "2")
    environment = cpu_environment() | {"TMPDIR": str(temporary)}
    with zygote.serve(MODEL, log, *CPU, *workers, environment=environment) as server:
        url, body = f"{server.url}/v1/completions", {"model": "m", "prompt": "1 + 1"}
        bad = [requests.post(url, json=body | {"max_tokens": "x"}) for _ in range(6)]
        good = [requests.post(url, json=body | {"max_tokens": 3}) for _ in range(6)]
        os.kill(server.pid, signal.SIGTERM)
        rest = wait_for_group_to_end(server.pid, patience=30)
    assert log.read_text(errors="replace").count("Start multi-tokenizer worker") == 2
    for reply in bad:
        message = reply.json()["message"]
        assert reply.status_code == 400 and "max_tokens" in message and "\n" not in message
    assert all(reply.status_code == 200 for reply in good)
    assert not rest and not list(temporary.iterdir())


@pytest.mark.parametrize(
    "host, port, message",
    [
        ("127.0.0.1", None, "in use"),
        ("192.0.2.1", 12345, "annot assign"),
        ("no-such-host.invalid", 12345, "no-such-host.invalid"),
    ],
)
def test_an_address_that_cannot_be_had(host, port, message):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = port or other.getsockname()[1]
        _refused(host, port, message)


def _refused(host: str, port: int, message: str) -> None:
    from ascend_gguf import GGUFError
    from ascend_gguf.srt.entrypoints.http_server import check_address

    with pytest.raises(GGUFError, match=message):
        check_address(host, port)


def test_a_port_in_use_is_noticed_before_loading(zygote, log):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        command = ("--model-path", str(MODEL), "--port", str(port), *CPU)
        assert status_at_end(zygote, log, *command) != 0
    text = log.read_text()
    (error,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert f"127.0.0.1:{port}" in error and "--port" in error
    assert "Load weight" not in text and "Traceback" not in text


def test_interrupted_while_loading(zygote, log, temporary):
    """Ctrl-C, which a terminal sends to every process: all are gone, and none has much to say."""
    command = ("--model-path", str(MODEL), "--port", str(free_port()), *CPU, "--tp-size", "2")
    environment = cpu_environment(2) | {"TMPDIR": str(temporary)}
    order = {"arguments": command, "log": str(log), "environment": environment}
    pid = zygote.fork(order)
    deadline = time.monotonic() + 60
    while "Load weight begin" not in (log.read_text() if log.exists() else ""):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    shared = shared_memory(group_members(pid))
    os.killpg(pid, signal.SIGINT)
    assert not wait_for_group_to_end(pid)
    assert "Traceback" not in log.read_text()
    assert not any(Path(name).exists() for name in shared)
    assert not list(temporary.iterdir())
