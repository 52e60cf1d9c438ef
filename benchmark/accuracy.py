"""Accuracy: word problems solved and the error of probabilities, by type, form and device.

The models of test/counting are asked the problems of test/data/counting through the API: served in
both forms on the CPU and on the simulated NPU, by llama.cpp's server where it is given, and by the
engine alone on the simulated NPU.

error  mean absolute error of the log-probabilities of the right answers' tokens, against
       transformers in float32 with the same file's numbers
KL     mean divergence from F16, in transformers in float32, of the distributions at those tokens
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import requests

from ascend_gguf import open_gguf
from demo import free_port, running, wait_until_ready
from evaluation import evaluate

# Before this folder, which has a serving.py of its own.
sys.path.insert(0, str(Path(__file__).parents[1] / "test"))
from counting.reference import (  # noqa: E402
    DATA,
    MOST_TOKENS,
    PROBLEMS,
    answers,
    distributions,
)
from random_model import read_model  # noqa: E402
from rewrite import rewrite  # noqa: E402
from serving import CPU, NPU, Server, Zygote, cpu_environment, npu_simulation  # noqa: E402

_VOCABULARY = 512
_ALONE = "engine alone"
_PEER = "llama.cpp"


class Served(NamedTuple):
    """A server of a file, and how it is asked."""

    url: str
    #: log p of every token at each place of the answers, float32 ``[tokens, vocabulary]``.
    distributions: Callable[[], np.ndarray]
    #: What the weights take; None where the server does not say.
    nbytes: float | None


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="accuracy", description=__doc__.splitlines()[0])
    parser.add_argument(
        "models", type=Path, nargs="*", help="GGUF files (those of test/data/counting)"
    )
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server")
    options = parser.parse_args(arguments)
    paths = options.models or sorted(DATA.glob("*.gguf"))
    print("| model | type | by | weights | device | solved | 95 % | error | KL | MB |")
    print("| --- | --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        stack.callback(print)
        log = Path(folder) / "server.log"
        zygotes = {"cpu": Zygote(cpu_environment()), "NPU": _npu(), _ALONE: _npu(alone=True)}
        for zygote in zygotes.values():
            stack.callback(zygote.close)
        for path in paths:
            kind, _, type_ = path.stem.partition("-")
            exact = distributions(read_model(path).in_transformers())
            original = np.load(DATA / f"{kind}-F16.npz")["logprobs"].astype(np.float64)
            for row, served in _all_ways(path, zygotes, log, options.llama_server):
                try:
                    with served as server:
                        figures = _figures(server, exact, original)
                except AssertionError:  # of test/serving.py
                    figures = "does not start | | | |"
                print(f"| {kind} | {type_} | {row} | {figures} |", flush=True)


def _npu(alone: bool = False) -> Zygote:
    prefix, environment = npu_simulation()
    return Zygote(environment | ({"SGLANG_PLUGINS": "none"} if alone else {}), prefix)


def _all_ways(
    path: Path, zygotes: dict[str, Zygote], log: Path, llama_server: Path | None
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Served]]]:
    """The cells that name a way to serve a file, and the server."""
    for device, arguments in {"cpu": CPU, "NPU": NPU}.items():
        for form in ("packed", "dense") if "F16" not in path.stem else ("dense",):
            config = ("--model-loader-extra-config", json.dumps({"weights": form}))
            yield (
                f"ascend-gguf | {form} | {device}",
                _ours(zygotes[device], path, log, *arguments, *config),
            )
    if "moe" in path.stem:
        # Alone it leaves the output matrix of a mixture of experts empty if it is the embedding.
        untied = log.with_name("untied.gguf")
        rewrite(path, untied, _with_output_matrix)
        arguments = (*NPU, "--quantization", "gguf")
        yield f"{_ALONE} | dense | NPU", _ours(zygotes[_ALONE], untied, log, *arguments)
        arguments = (*arguments, "--tp-size", "2")
        yield f"{_ALONE} | dense | 2 NPUs", _ours(zygotes[_ALONE], untied, log, *arguments)
    if llama_server:
        yield f"{_PEER} | its own | cpu", _llama(llama_server, path, log)


def _with_output_matrix(name: str, data: np.ndarray) -> list[tuple[str, np.ndarray]]:
    names = (name, "output.weight") if name == "token_embd.weight" else (name,)
    return [(each, data) for each in names]


@contextlib.contextmanager
def _ours(zygote: Zygote, path: Path, log: Path, *arguments: str) -> Iterator[Served]:
    with zygote.serve(path, log, *arguments) as server:
        table = re.search(r"^all .* ([\d.]+) of the file", log.read_text(), re.M)
        nbytes = float(table[1]) * _tensor_bytes(path) if table else None
        yield Served(server.url, lambda: _distributions(server), nbytes)


def _distributions(server: Server) -> np.ndarray:
    places = []
    for ids, start in answers():
        options = {"return_logprob": True, "logprob_start_len": start - 1}
        answer = server.generate(
            ids, {"max_new_tokens": 1}, top_logprobs_num=_VOCABULARY, **options
        )
        # The first is of the token before the answer.
        places += map(_row, answer["meta_info"]["input_top_logprobs"][1:])
    return np.stack(places)


def _row(entries: list[tuple[float, int, str | None]]) -> np.ndarray:
    row = np.full(_VOCABULARY, -np.inf, np.float32)
    for logprob, token, _ in entries:
        row[token] = logprob
    return row


@contextlib.contextmanager
def _llama(binary: Path, path: Path, log: Path) -> Iterator[Served]:
    port = free_port()
    command = [str(binary), "--model", str(path), "--port", str(port), "--jinja"]
    command += ["--threads", str(len(os.sched_getaffinity(0))), "--parallel", "16"]
    libraries = f"{binary.parent}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    with running(command, os.environ | {"LD_LIBRARY_PATH": libraries}, log) as process:
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(process, f"{url}/health", log, 60)
        yield Served(url, lambda: _llama_distributions(url), _tensor_bytes(path))


def _llama_distributions(url: str) -> np.ndarray:
    places = []
    for ids, start in answers():
        for place in range(start, len(ids)):
            body = {"prompt": ids[:place], "n_predict": 1, "n_probs": _VOCABULARY}
            reply = requests.post(f"{url}/completion", json=body, timeout=60)
            reply.raise_for_status()
            (token,) = reply.json()["completion_probabilities"]
            places.append(_row([(e["logprob"], e["id"], None) for e in token["top_logprobs"]]))
    return np.stack(places)


def _tensor_bytes(path: Path) -> int:
    return sum(tensor.blocks.nbytes for tensor in open_gguf(path).tensors.values())


def _normalized(logprobs: np.ndarray) -> np.ndarray:
    """Rounding leaves distributions whose sum is a little off one."""
    return logprobs - np.log(np.exp(logprobs).sum(-1, keepdims=True))


def _figures(server: Served, exact: np.ndarray, original: np.ndarray) -> str:
    """The cells of what was measured."""
    result = evaluate(server.url, PROBLEMS, max_tokens=MOST_TOKENS)
    found = server.distributions().astype(np.float64)
    tokens = [token for ids, start in answers() for token in ids[start:]]
    places = np.arange(len(tokens))
    error = np.abs(found[places, tokens] - exact[places, tokens]).mean()
    original, found = _normalized(original), _normalized(found)
    divergence = (np.exp(original) * (original - found)).sum(-1).mean()
    low, high = result.interval
    return (
        f"{result.solved} of {len(PROBLEMS)} | {low:.3f} to {high:.3f} | {error:.1e} | "
        f"{divergence:.1e} | {'' if server.nbytes is None else f'{server.nbytes / 1e6:.2f}'}"
    )
