"""Accuracy: word problems solved and the error of log-probabilities, by type, layout and device.

The models of test/counting answer the problems of test/data/counting through the API: served packed
and dense on the CPU and on the simulated NPU, by llama.cpp's server if it is given, and by the
engine alone on the simulated NPU.

error  mean absolute error of the log-probabilities of the right answers' tokens, against
       transformers in float32 with the same file's weights
KL     mean KL divergence of the distributions at those tokens from F16 in transformers in float32
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
    SIZE,
    answers,
    distributions,
    divergence,
    row_of,
    served_distributions,
)
from random_model import read_model  # noqa: E402
from rewrite import rewrite  # noqa: E402
from serving import CPU, NPU, Zygote, cpu_environment, npu_simulation  # noqa: E402

_ALONE = "engine alone"
_PEER = "llama.cpp"


class Served(NamedTuple):
    """A server of a file, and how to read its distributions."""

    url: str
    #: log p of every token at each place of the answers, float32 ``[tokens, vocabulary]``.
    distributions: Callable[[], np.ndarray]
    #: Bytes of the weights; None if the server does not say.
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
            for row, served in _all_ways(path, zygotes, log, options.llama_server):
                try:
                    with served as server:
                        figures = _figures(server, kind, exact)
                except AssertionError:  # of test/serving.py
                    figures = "does not start | | | |"
                print(f"| {kind} | {type_} | {row} | {figures} |", flush=True)


def _npu(alone: bool = False) -> Zygote:
    prefix, environment = npu_simulation()
    return Zygote(environment | ({"SGLANG_PLUGINS": "none"} if alone else {}), prefix)


def _all_ways(
    path: Path, zygotes: dict[str, Zygote], log: Path, llama_server: Path | None
) -> Iterator[tuple[str, contextlib.AbstractContextManager[Served]]]:
    """The table cells that name a way to serve a file, and the server."""
    for device, arguments in {"cpu": CPU, "NPU": NPU}.items():
        for layout in ("packed", "dense") if "F16" not in path.stem else ("dense",):
            config = ("--model-loader-extra-config", json.dumps({"weights": layout}))
            yield (
                f"ascend-gguf | {layout} | {device}",
                _ours(zygotes[device], path, log, *arguments, *config),
            )
    if "moe" in path.stem:
        # With tied embeddings, the engine alone leaves the output matrix of an MoE model empty.
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
        yield Served(server.url, lambda: served_distributions(server), nbytes)


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
            body = {"prompt": ids[:place], "n_predict": 1, "n_probs": SIZE}
            reply = requests.post(f"{url}/completion", json=body, timeout=60)
            reply.raise_for_status()
            (token,) = reply.json()["completion_probabilities"]
            places.append(row_of((e["logprob"], e["id"]) for e in token["top_logprobs"]))
    return np.stack(places)


def _tensor_bytes(path: Path) -> int:
    return sum(tensor.blocks.nbytes for tensor in open_gguf(path).tensors.values())


def _figures(server: Served, kind: str, exact: np.ndarray) -> str:
    """The table cells of what was measured."""
    result = evaluate(server.url, PROBLEMS, max_tokens=MOST_TOKENS)
    found = server.distributions()
    tokens = [token for ids, start in answers() for token in ids[start:]]
    places = np.arange(len(tokens))
    error = np.abs(found[places, tokens] - exact[places, tokens]).mean()
    low, high = result.interval
    held = "" if server.nbytes is None else f"{server.nbytes / 1e6:.2f}"
    return (
        f"{result.solved} of {len(PROBLEMS)} | {low:.3f} to {high:.3f} | {error:.1e} | "
        f"{divergence(found, kind):.1e} | {held}"
    )
