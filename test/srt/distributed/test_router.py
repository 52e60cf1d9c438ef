"""Two servers behind SGLang's own router (``sglang-router``)."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from demo import free_port
from serving import CPU, Server, mean_error, stop_group, tail

MODEL = Path(__file__).parents[2] / "data" / "qwen3-dense-Q4_K_M.gguf"
REFERENCE = json.loads(MODEL.with_suffix(".ref.json").read_text())
START_TIMEOUT = 60


@pytest.fixture
def replicas(zygote, tmp_path) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                zygote.serve(MODEL, tmp_path / f"{name}.log", *CPU, "--dtype", "float32")
            )
            for name in ("first", "second")
        ]


@contextlib.contextmanager
def _router(replicas: list[Server], log: Path) -> Iterator[Server]:
    port, metrics = free_port(), free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--port", str(port)]
    command += ["--host", "127.0.0.1", "--policy", "round_robin"]
    command += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics)]
    command += ["--health-check-interval-secs", "1", "--health-failure-threshold", "1"]
    command += ["--worker-urls", *(replica.url for replica in replicas)]
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    router = Server(f"http://127.0.0.1:{port}", process.pid, log)
    try:
        deadline = time.monotonic() + START_TIMEOUT
        while _workers(router) < len(replicas):
            assert process.poll() is None and time.monotonic() < deadline, tail(log)
            time.sleep(0.2)
        yield router
    finally:
        stop_group(process.pid, reap=process.poll)


def _workers(router: Server) -> int:
    """How many servers it knows to be well."""
    with contextlib.suppress(requests.RequestException, ValueError):
        workers = requests.get(f"{router.url}/workers", timeout=10).json()["workers"]
        return sum(worker["is_healthy"] for worker in workers)
    return 0


def _answered(replica: Server) -> int:
    return replica.log.read_text().count('"POST /generate HTTP/1.1" 200')


def test_two_replicas_behind_the_router(replicas, tmp_path):
    """They share the requests; when one is gone, the other answers them all."""
    with _router(replicas, tmp_path / "router.log") as router:
        for _ in range(4):
            found = router.prompt_logprobs(REFERENCE["input_ids"])
            assert mean_error(found, REFERENCE["token_logprobs"]) <= 1e-4
        assert [_answered(replica) for replica in replicas] == [2, 2]
        stop_group(replicas[0].pid, ask=False)
        for _ in range(4):
            router.prompt_logprobs(REFERENCE["input_ids"])
        assert _answered(replicas[1]) == 6
