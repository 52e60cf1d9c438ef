"""Files of llama.cpp's own converter, served and compared with transformers.

A chosen part runs with the other tests, of quantized files; ``make peers`` runs all of it, and
prints the errors.
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
import torch

from ascend_gguf.architectures import ARCHITECTURES
from engine_process import EngineProcess
from fetch import FetchError, llama_cpp
from hf_models import TINY, Written
from peers.convert import RERANKER_WORDS
from peers.table import CHOSEN, PEERS, RERANKERS
from random_model import PROMPT
from serving import typical_error

#: In float32 nothing is rounded on the way, neither by the file nor by the engine.
LIMITS = {"float32": 1e-5, "float16": 0.005, "bfloat16": 0.03}

#: Gemma 2 and others are refused in float16, which these small models do not leave.
ANY_DTYPE = {"model_loader_extra_config": '{"float16": "allow"}'}

#: Tokens of an answer, which decode computes.
ANSWER = 8

ALL = bool(os.environ.get("ALL_PEERS"))
NAMES = list(PEERS if ALL else CHOSEN)
#: Of the files.
TYPES = ("F32", "Q8_0") if ALL else ("Q8_0",)

#: Largest error of the probability of yes.
RERANKER_LIMITS = {"cpu": ("float32", 1e-5), "npu": ("float16", 5e-3)}


@pytest.fixture(scope="session")
def files(request, tmp_path_factory) -> Callable[[str, str], Written]:
    """The models that the chosen tests need, by name and type, made once for all processes."""
    tests = [item.callspec.params for item in request.session.items if "files" in item.fixturenames]
    names = sorted({test["name"] for test in tests})
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
            script = [sys.executable, "-W", "ignore", Path(__file__).with_name("convert.py")]
            command = [*script, source, folder, ",".join(TYPES), *names]
            subprocess.run(command, check=True, capture_output=True)

    def written(name: str, kind: str) -> Written:
        error = folder / name / "error"
        assert not error.exists(), error.read_text()
        return Written(folder / name / f"{kind}.gguf", folder / name / "hf")

    return written


def _check(engine: EngineProcess, model: Written, dtype: str, record: Callable) -> None:
    tokens, found = engine.score(model.path, PROMPT, ANSWER, dtype=dtype, **ANY_DTYPE)
    errors = np.abs(np.subtract(found, model.logprobs(tokens)))
    # Of the prompt and of the answer, which other code computes.
    error = max(typical_error(part, dtype) for part in np.split(errors, [-ANSWER]))
    record("error", (f"{model.path.stem} in {dtype}", error))
    assert error <= LIMITS[dtype]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", NAMES)
def test_on_the_cpu(cpu_engine, files, record_property, name, kind):
    _check(cpu_engine, files(name, kind), "float32", record_property)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", [name for name in NAMES if "npu" not in PEERS[name].refused])
def test_on_the_simulated_npu(npu_engine, files, record_property, name, kind):
    _check(npu_engine, files(name, kind), PEERS[name].npu_dtype, record_property)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", RERANKERS)
@pytest.mark.parametrize("device", RERANKER_LIMITS)
def test_reranker(request, files, device, name, kind):
    model, engine = files(name, kind), request.getfixturevalue(f"{device}_engine")
    dtype, limit = RERANKER_LIMITS[device]
    prompts = [PROMPT, PROMPT[:20]]
    with engine.load(model.path, dtype=dtype) as served:
        found = torch.tensor(served.embed(prompts), dtype=torch.float64).softmax(-1)[:, 0]
    rows = [RERANKER_WORDS["yes"], RERANKER_WORDS["no"]]
    for prompt, score in zip(prompts, found, strict=True):
        with torch.no_grad():
            logits = model.reference(torch.tensor([prompt])).logits[0, -1, rows]
        error = abs(score - logits.double().softmax(-1)[0]).item()
        print(f"error of the probability of yes in {dtype}: {error:.1e}")
        assert error <= limit


def test_every_architecture_has_a_peer():
    """But for those that there is nothing of to convert, or no converter that works."""
    found = {TINY[name].arch for name in PEERS.keys() & TINY.keys()} | PEERS.keys()
    missing = {architecture.name for architecture in ARCHITECTURES} - found
    assert missing <= {"bailingmoe2", "baichuan"} | {t.arch for t in TINY.values() if t.refused}
