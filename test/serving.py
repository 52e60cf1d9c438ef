"""Real servers for tests: started, asked over HTTP, and gone when the test is over.

A server started from nothing imports the engine three times, about 15 s.  :class:`Zygote` imports
it once and forks servers from there in a few seconds; everything else about them is the same.
Tests of starting itself, and of anything that depends on fresh processes, use :func:`launch`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import numpy as np
import requests

from demo import free_port
from zygote import MOST_DECODED, listen_to_interrupts

START_TIMEOUT = 240.0
STOP_TIMEOUT = 20.0

#: What every server of the tests is given, unless a test says otherwise: little memory, no warm-up
#: request, no core while it has nothing to do.
SMALL = (
    *("--max-total-tokens", "4096", "--max-running-requests", str(MOST_DECODED)),
    *("--skip-server-warmup", "--sleep-on-idle"),
)
CPU = ("--device", "cpu", "--attention-backend", "torch_native")
NPU = ("--device", "npu", "--attention-backend", "ascend")
#: For one request at a time: each further size of graphs takes a second and more to capture.
NPU_ONE = (*NPU, "--cuda-graph-max-bs-decode", "1")


def cpu_environment(ranks: int = 1) -> dict[str, str]:
    """Environment of a CPU server: one core for each rank where there are several."""
    environment = dict(os.environ)
    if ranks > 1:
        cores = sorted(os.sched_getaffinity(0))
        environment["SGLANG_CPU_OMP_THREADS_BIND"] = "|".join(
            str(cores[rank % len(cores)]) for rank in range(ranks)
        )
        environment["OMP_NUM_THREADS"] = "1"
    return environment


@dataclass
class Server:
    """A running server."""

    url: str
    pid: int
    log: Path

    def prompt_logprobs(self, input_ids: Sequence[int]) -> list[float]:
        """log p of each token but the first, given those before it."""
        answer = self.generate(
            input_ids, {"max_new_tokens": 1}, return_logprob=True, logprob_start_len=0
        )
        return [entry[0] for entry in answer["meta_info"]["input_token_logprobs"]][1:]

    def continued(
        self, prompt: Sequence[int], new: int, **options
    ) -> tuple[list[int], list[float]]:
        """A prompt with its most probable continuation, and log p of all but the first token."""
        sampling = {"max_new_tokens": new, "ignore_eos": True}
        options |= {"return_logprob": True, "logprob_start_len": 0}
        answer = self.generate(prompt, sampling, **options)
        return [*prompt, *answer["output_ids"]], told(answer)

    def mean_error(self, prompt: Sequence[int], expected: Sequence[float]) -> float:
        """Mean absolute error of the log-probabilities of a prompt's tokens; printed too."""
        return printed_error(self.prompt_logprobs(prompt), expected)

    def generate(self, input_ids: Sequence[int], sampling: dict, **options) -> dict:
        body = {"input_ids": list(input_ids), "sampling_params": {"temperature": 0, **sampling}}
        reply = requests.post(f"{self.url}/generate", json=body | options, timeout=120)
        reply.raise_for_status()
        return reply.json()


def told(answer: dict[str, Any]) -> list[float]:
    """Log-probabilities in an answer: of the prompt but the first that was asked for, and of it."""
    meta = answer["meta_info"]
    entries = *meta["input_token_logprobs"][1:], *meta["output_token_logprobs"]
    return [value for value, *_ in entries]


def mean_error(found: Sequence[float], expected: Sequence[float]) -> float:
    """Mean absolute difference."""
    return sum(abs(f - e) for f, e in zip(found, expected, strict=True)) / len(expected)


def typical_error(errors: np.ndarray, dtype: str) -> float:
    """The mean; in float16 but for the largest, and in bfloat16 the median.

    Single tokens may meet other experts whose logits nearly tie.
    """
    if dtype == "bfloat16":
        return float(np.median(errors))
    return float(np.mean(np.sort(errors)[:-1] if dtype == "float16" else errors))


def printed_error(found: Sequence[float], expected: Sequence[float]) -> float:
    error = mean_error(found, expected)
    print(f"mean absolute error of {len(expected)} log-probabilities: {error:.2e}")
    return error


def npu_simulation(*options: str) -> tuple[list[str], dict[str, str]]:
    """The command that runs another on the simulated NPU, and its environment."""
    here = Path(__file__).parent
    search = os.pathsep.join(map(str, (here, here.parent / "python")))
    environment = os.environ | {"PYTHONPATH": search}
    return [sys.executable, "-m", "npu_sim", "run", *options, "--"], environment


def server_command(model: Path | str, port: int, *arguments: str) -> list[str]:
    """The command line a user types."""
    module = [sys.executable, "-m", "sglang.launch_server", "--model-path", str(model)]
    return [*module, "--port", str(port), *arguments]


@contextlib.contextmanager
def launch(
    model: Path | str,
    log: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Server]:
    """``python -m sglang.launch_server`` on ``model``, once it answers.

    ``prefix`` is a command that runs the command after it, such as ``npu_sim run --``.
    """
    port = free_port()
    with open(log, "wb") as output:
        process = subprocess.Popen(
            [*prefix, *server_command(model, port, *SMALL, *arguments)],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=listen_to_interrupts,
        )
    server = Server(f"http://127.0.0.1:{port}", process.pid, log)
    try:
        _wait_until_ready(server, lambda: process.poll() is None)
        yield server
    finally:
        stop_group(process.pid, reap=process.poll)
        process.wait()


class Zygote:
    """A process that has imported the engine and forks servers."""

    def __init__(
        self,
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        address: Path | None = None,
    ) -> None:
        """Start it, or use the one at ``address``.

        Args:
            environment: of the process.
            prefix: a command that runs the command after it, such as ``npu_sim run --``.
            address: a socket that several processes share one zygote by, which ends with the last
                of them.  By default it is this object's alone.
        """
        self._folder = None if address else tempfile.TemporaryDirectory(prefix="zygote-")
        address = address or Path(self._folder.name, "socket")
        self._process: subprocess.Popen | None = None
        with open(f"{address}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._connection = _connected(address)
            if self._connection is None:
                address.unlink(missing_ok=True)
                script = str(Path(__file__).with_name("zygote.py"))
                command = [*prefix, sys.executable, "-W", "ignore", script, str(address)]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment
                )
                while (connection := _connected(address)) is None:
                    assert self._process.poll() is None, "the zygote ended while starting"
                    time.sleep(0.05)
                self._connection = connection

    @contextlib.contextmanager
    def serve(
        self,
        model: Path | str,
        log: Path,
        *arguments: str,
        environment: dict[str, str] | None = None,
    ) -> Iterator[Server]:
        """A server on ``model``, once it answers."""
        port = free_port()
        command = ["--model-path", str(model), "--port", str(port), *SMALL, *arguments]
        order = {
            "arguments": command,
            "log": str(log),
            "environment": environment or {},
        }
        pid = self.fork(order)
        server = Server(f"http://127.0.0.1:{port}", pid, log)
        try:
            _wait_until_ready(server, lambda: process_is_running(pid))
            yield server
        finally:
            stop_group(pid, ask=False)

    def fork(self, order: dict) -> int:
        """The process that does what :mod:`zygote` is ordered: it leads a group of its own."""
        self._connection.send(order)
        return self._connection.recv()

    def status(self, pid: int) -> int | None:
        """The exit status of a process that was forked; None while it runs."""
        self._connection.send(pid)
        return self._connection.recv()

    def close(self) -> None:
        self._connection.close()
        if self._folder:
            self._process.wait(STOP_TIMEOUT)
            self._folder.cleanup()


def status_at_end(zygote: Zygote, log: Path, *arguments: str) -> int:
    """The exit status of a server that ends by itself; nothing of it may be left."""
    pid = zygote.fork({"arguments": arguments, "log": str(log), "environment": {}})
    assert wait_for_group_to_end(pid, patience=180) == []
    status = zygote.status(pid)
    assert status is not None
    return status


def _connected(address: Path) -> Connection | None:
    """To who listens there."""
    try:
        return Client(str(address), family="AF_UNIX")
    except OSError:
        return None


def stop_group(pid: int, ask: bool = True, reap=lambda: None) -> None:
    """End the process group of a server.  Returns when nobody is left in it.

    Args:
        pid: the server's process, which leads the group.
        ask: let the server shut down by itself first.
        reap: collects the exit status, where the server is a child of this process.
    """
    if ask:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_for_group_to_end(pid, reap)
    while group_members(pid):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        wait_for_group_to_end(pid, reap, patience=1)


def wait_for_group_to_end(pid: int, reap=lambda: None, patience: float = STOP_TIMEOUT) -> list[int]:
    """Processes of the group that still run when patience is over."""
    deadline = time.monotonic() + patience
    while (members := group_members(pid)) and time.monotonic() < deadline:
        reap()
        time.sleep(0.05)
    return members


def group_members(group: int) -> list[int]:
    """Processes of a process group that still run (a zombie does not)."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # pid (name, which may hold anything) state parent group ...
                state, _, member_of = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
                if int(member_of) == group and state != "Z":
                    members.append(int(entry.name))
    return members


def process_is_running(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_until_ready(server: Server, is_running) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"{server.url}/health", timeout=10).status_code == 200:
                return
        if not is_running():
            raise AssertionError(f"the server ended while starting:\n{tail(server.log)}")
        time.sleep(0.1)
    raise AssertionError(f"no answer within {START_TIMEOUT:.0f} s:\n{tail(server.log)}")


def tail(log: Path, lines: int = 40) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
