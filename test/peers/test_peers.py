"""Files of llama.cpp's own converter, served and compared with transformers.

A chosen part runs with the other tests; ``make peers`` runs all of it, and prints the errors.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ascend_gguf.architectures import ARCHITECTURES
from engine_process import EngineProcess
from fetch import FetchError, llama_cpp
from hf_models import TINY, Written
from peers.table import CHOSEN, PEERS
from random_model import PROMPT

#: As in ``srt/test_architectures.py``.
LIMITS = {"float32": 1e-4, "float16": 0.005, "bfloat16": 0.03}

#: Gemma 2 and others are refused in float16, which these small models do not leave.
ANY_DTYPE = {"model_loader_extra_config": '{"float16": "allow"}'}

#: Tokens of an answer, which decode computes.
ANSWER = 8

NAMES = list(PEERS) if os.environ.get("ALL_PEERS") else list(CHOSEN)


@pytest.fixture(scope="session")
def files(tmp_path_factory) -> Callable[[str], Written]:
    """The converted models, made once for all of pytest's processes."""
    try:
        source = llama_cpp()
    except FetchError as error:
        pytest.skip(str(error))
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "peers"
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            folder.mkdir()
            script = Path(__file__).with_name("convert.py")
            command = [sys.executable, "-W", "ignore", script, source, folder, *NAMES]
            subprocess.run(command, check=True, capture_output=True)

    def written(name: str) -> Written:
        error = folder / name / "error"
        assert not error.exists(), error.read_text()
        return Written(folder / name / "model.gguf", folder / name / "hf")

    return written


def _check(engine: EngineProcess, model: Written, dtype: str, record: Callable) -> None:
    tokens, found = engine.score(model.path, PROMPT, ANSWER, dtype=dtype, **ANY_DTYPE)
    errors = np.abs(np.subtract(found, model.logprobs(tokens)))
    prompt, answer = (_typical(part, dtype) for part in np.split(errors, [-ANSWER]))
    record("error", f"{dtype}: prompt {prompt:.1e}, answer {answer:.1e}")
    assert max(prompt, answer) <= LIMITS[dtype]


def _typical(errors: np.ndarray, dtype: str) -> float:
    """The mean; in float16 but for the largest, and in bfloat16 the median.

    Single tokens may meet other experts whose logits nearly tie.
    """
    if dtype == "bfloat16":
        return float(np.median(errors))
    return float(np.mean(np.sort(errors)[:-1] if dtype == "float16" else errors))


@pytest.mark.parametrize("name", NAMES)
def test_on_the_cpu(cpu_engine, files, record_property, name):
    _check(cpu_engine, files(name), "float32", record_property)


@pytest.mark.parametrize("name", NAMES)
def test_on_the_simulated_npu(npu_engine, files, record_property, name):
    _check(npu_engine, files(name), PEERS[name].npu_dtype, record_property)


def test_every_architecture_has_a_peer():
    """But for one that transformers does not have."""
    models = {peer.model_type for peer in PEERS.values()}
    missing = {a.name for a in ARCHITECTURES if a.model_type not in models}
    assert missing <= {"bailingmoe2"} | {t.arch for t in TINY.values() if t.refused}
