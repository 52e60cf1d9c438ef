"""Two nodes that share a model, on one machine: ``--nnodes 2``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import requests

from demo import free_port
from serving import (
    CPU,
    NPU,
    SMALL,
    Server,
    Zygote,
    cpu_environment,
    group_members,
    stop_group,
    tail,
    wait_for_group_to_end,
)

MODEL = Path(__file__).parents[2] / "data" / "qwen3-moe-Q4_K_M.gguf"
REFERENCE = json.loads(MODEL.with_suffix(".ref.json").read_text())

#: Seconds until the survivors of a node that is gone have ended.
MOST = 60

#: Device, dtype, limit of the mean error, and the environment of each node.
CORES = cpu_environment(2)["SGLANG_CPU_OMP_THREADS_BIND"].split("|")
DEVICES = {
    "cpu": (CPU, "float32", 1e-4, [{"SGLANG_CPU_OMP_THREADS_BIND": core} for core in CORES]),
    "npu": ((*NPU, "--disable-cuda-graph"), "float16", 0.005, [{}, {}]),
}


@contextlib.contextmanager
def _nodes(
    zygote: Zygote, folder: Path, arguments: Sequence[str], environments: Sequence[dict[str, str]]
) -> Iterator[tuple[Server, int]]:
    """The node that answers, once it does, and the process of the other."""
    common = ["--model-path", str(MODEL), *SMALL, *arguments, "--tp-size", "2", "--nnodes", "2"]
    common += ["--dist-init-addr", f"127.0.0.1:{free_port()}"]
    second = zygote.fork(
        {
            "arguments": [*common, "--node-rank", "1", "--port", str(free_port())],
            "log": str(folder / "second.log"),
            "environment": environments[1],
        }
    )
    try:
        first = (*common[2:], "--node-rank", "0")
        log = folder / "first.log"
        with zygote.serve(MODEL, log, *first, environment=environments[0]) as server:
            yield server, second
    finally:
        stop_group(second, ask=False)


@pytest.mark.parametrize("device", DEVICES)
def test_two_nodes(request, tmp_path, device):
    """They answer as one does; when one is gone, so is the other: nothing hangs."""
    zygote = request.getfixturevalue({"cpu": "zygote", "npu": "npu_zygote"}[device])
    arguments, dtype, limit, environments = DEVICES[device]
    arguments = (*arguments, "--dtype", dtype)
    with _nodes(zygote, tmp_path, arguments, environments) as (server, second):
        prompt = REFERENCE["input_ids"]
        assert server.mean_error(prompt, REFERENCE["token_logprobs"]) <= limit
        os.killpg(second, signal.SIGKILL)
        assert wait_for_group_to_end(second) == []
        begin = time.monotonic()
        with pytest.raises(requests.RequestException):
            server.generate(prompt[:7], {"max_new_tokens": 4})
        assert wait_for_group_to_end(server.pid, patience=MOST) == [], tail(server.log)
        print(f"the first node ended after {time.monotonic() - begin:.1f} s")
        assert not group_members(server.pid)
