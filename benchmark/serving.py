"""Serving on the CPU: packed and dense weights, and llama.cpp's server with the same file.

The servers run together and take turns: while one is measured, the others are stopped.  Prompts are
random tokens, new each time, so that no prefix cache helps; answers have a fixed length.  Medians
of tokens per second in wall-clock time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from gguf import TokenType

from ascend_gguf import open_gguf
from demo import free_port, running, wait_until_ready
from serve import plan

PROMPT, ANSWER, CONCURRENT = 512, 32, 16
CONTEXT = 1024
#: Tokens of our KV cache: few, so that warming up writes to all of it.
CACHED = 2048
PEER = "llama.cpp"


class Server(NamedTuple):
    """A server, its process group, and the tokens of its prompts."""

    name: str
    url: str
    group: int
    tokens: Sequence[int]

    def prompt(self, length: int) -> list[int]:
        """Random tokens."""
        return random.choices(self.tokens, k=length)

    def complete(self, prompt: list[int], tokens: int) -> tuple[float, float]:
        """Seconds to the first and to the last token of a greedy answer of this length."""
        body = {"model": "any", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
        body |= {"ignore_eos": True, "cache_prompt": False, "stream": True}
        request = urllib.request.Request(  # noqa: S310
            f"{self.url}/v1/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=600) as reply:  # noqa: S310
            times = [time.perf_counter() - start for line in reply if b'"text"' in line]
        return times[0], times[-1]

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Let the server run inside the block only."""
        os.killpg(self.group, signal.SIGCONT)
        try:
            yield
        finally:
            os.killpg(self.group, signal.SIGSTOP)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="serving", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, nargs="?", help="a GGUF file")
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server")
    parser.add_argument("--rounds", type=int, default=5, help="for each server (%(default)s)")
    parser.add_argument("--weights", default="packed,dense", help="layouts of ours (%(default)s)")
    parser.add_argument("--log", type=Path, help="keep the servers' logs in this folder")
    options = parser.parse_args(arguments)
    if options.model is None:
        print("left out: it takes a model, `make bench ARGS='serving model.gguf'`\n")
        return
    signal.signal(signal.SIGTERM, _stop)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ascend-gguf-serving-"))
        logs = options.log or Path(folder)
        logs.mkdir(exist_ok=True)
        servers, asked = [], (options.model, _tokens(options.model), logs)
        for layout in options.weights.split(","):
            servers.append(stack.enter_context(_ours(layout, *asked)))
        if options.llama_server:
            servers.append(stack.enter_context(_llama(options.llama_server, *asked)))
        _print_table(servers, options.rounds)


def _tokens(model: Path) -> Sequence[int]:
    """The text tokens of the model's vocabulary."""
    metadata = open_gguf(model).metadata
    count = len(metadata["tokenizer.ggml.tokens"])
    kinds = metadata.get("tokenizer.ggml.token_type", [TokenType.NORMAL] * count)
    return [token for token, kind in enumerate(kinds) if kind == TokenType.NORMAL]


@contextlib.contextmanager
def _ours(weights: str, model: Path, tokens: Sequence[int], logs: Path) -> Iterator[Server]:
    port, log = free_port(), logs / f"{weights}.log"
    command, environment = plan(
        str(model), "cpu", port, False,
        [
            *("--model-loader-extra-config", json.dumps({"weights": weights})),
            *("--max-total-tokens", str(CACHED)),
            *("--max-running-requests", str(CONCURRENT), "--disable-radix-cache"),
        ],
    )  # fmt: skip
    with running(command, os.environ | environment, log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, f"{url}/health", log, 300)
        with _warm(Server(weights, url, process.pid, tokens)) as server:
            yield server


@contextlib.contextmanager
def _llama(binary: Path, model: Path, tokens: Sequence[int], logs: Path) -> Iterator[Server]:
    port, log = free_port(), logs / "llama.log"
    threads = len(os.sched_getaffinity(0))
    command = [
        str(binary), "--model", str(model), "--port", str(port), "--threads", str(threads),
        "--parallel", str(CONCURRENT), "--ctx-size", str(CONCURRENT * CONTEXT),
    ]  # fmt: skip
    libraries = f"{binary.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    with running(command, os.environ | {"LD_LIBRARY_PATH": libraries}, log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, f"{url}/health", log, 300)
        with _warm(Server(PEER, url, process.pid, tokens)) as server:
            yield server


@contextlib.contextmanager
def _warm(server: Server) -> Iterator[Server]:
    """Warm a server up with everything it will do, then stop it until it is measured."""
    for case in [*CASES.values()] + [_prompt_speed] * (CACHED // PROMPT):
        case(server)
    os.killpg(server.group, signal.SIGSTOP)
    try:
        yield server
    finally:
        os.killpg(server.group, signal.SIGCONT)


def _prompt_speed(server: Server) -> float:
    return PROMPT / server.complete(server.prompt(PROMPT), 1)[0]


def _answer_speed(server: Server) -> float:
    """Speed of the tokens after the first, one decode step each."""
    first, last = server.complete(server.prompt(16), ANSWER)
    return (ANSWER - 1) / (last - first)


def _total_speed(server: Server) -> float:
    prompts = [server.prompt(16) for _ in range(CONCURRENT)]
    with ThreadPoolExecutor(CONCURRENT) as pool:
        start = time.perf_counter()
        list(pool.map(lambda prompt: server.complete(prompt, ANSWER), prompts))
        return CONCURRENT * ANSWER / (time.perf_counter() - start)


CASES: dict[str, Callable[[Server], float]] = {
    f"prompt of {PROMPT} tokens": _prompt_speed,
    "one answer": _answer_speed,
    f"{CONCURRENT} answers at once": _total_speed,
}


def _print_table(servers: list[Server], rounds: int) -> None:
    names = [server.name for server in servers]
    others = [name for name in names if name != PEER and PEER in names]
    ratios = [f"{name} : {PEER}" for name in others]
    print("| tokens a second | " + " | ".join([*names, *ratios]) + " |")
    print("| --- |" + " ---: |" * (len(names) + len(ratios)), flush=True)
    for case, measure in CASES.items():
        speeds: dict[str, list[float]] = {name: [] for name in names}
        for round_ in range(rounds):
            for server in random.Random(round_).sample(servers, len(servers)):
                with server.awake():
                    speeds[server.name].append(measure(server))
        found = {name: statistics.median(values) for name, values in speeds.items()}
        cells = [f"{found[name]:.1f}" for name in names]
        cells += [f"{found[name] / found[PEER]:.2f}" for name in others]
        print(f"| {case} | " + " | ".join(cells) + " |", flush=True)
    print()


def _stop(signum: int, frame: object) -> None:
    """Exit through the context managers that end the servers."""
    raise SystemExit(128 + signum)
