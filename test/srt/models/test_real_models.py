"""Real models of the package index, against what transformers says of them (``real_models.py``).

``FULL=1`` in the environment adds what a usual run has no time for.  Each test prints its row of
the table in ``docs/accuracy.md``.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from engine_process import EngineProcess
from needs import fetched
from real_models import ANSWER, MODELS, SHORT, TEXTS, RealModel

FULL = bool(os.environ.get("FULL"))

#: Mean error of log-probabilities in float32; in bfloat16, how many times transformers' own.
FLOAT32, BFLOAT16 = 1e-5, 1.2

#: A token may be another than transformers' where the next best is as near as this (log p).
NEARLY_TIED = {"float32": 1e-3, "bfloat16": 0.25}

#: Of a prompt, at once: a row of logits is a megabyte.
CHUNK = ("--chunked-prefill-size", "512", "--max-total-tokens", "8192")

#: Bytes of the weights, of those of the file.
BYTES = {"cpu": 1.1, "npu": 1.25}


DOCUMENTATION = Path(__file__).parents[3] / "docs" / "accuracy.md"
#: What it calls them.
TITLES = {
    "smollm2-135m-Q4_1": "SmolLM2",
    "gemma3-270m-Q4_K_M": "Gemma 3",
    "cpu": "CPU",
    "npu": "NPU",
}

#: What a usual run has time for.
USUAL = {
    ("smollm2-135m-Q4_1", "cpu", "packed", "float32"): SHORT,
    ("smollm2-135m-Q4_1", "cpu", "packed", "bfloat16"): SHORT,
    ("smollm2-135m-Q4_1", "cpu", "dense", "float32"): ("prose",),
    ("gemma3-270m-Q4_K_M", "cpu", "packed", "float32"): SHORT,
    ("gemma3-270m-Q4_K_M", "cpu", "packed", "bfloat16"): ("prose", "code"),
    ("smollm2-135m-Q4_1", "npu", "packed", "bfloat16"): ("prose",),
}
SLOW = ("gemma3-270m-Q4_K_M", "npu")
EVERYTHING = {
    # A row of 262,144 log-probabilities takes the simulated NPU 40 ms.
    (name, device, weights, dtype): SHORT if (name, device) == SLOW else tuple(TEXTS)
    for name in MODELS
    for device, dtypes in (("cpu", ("float32", "bfloat16")), ("npu", ("bfloat16",)))
    for weights in ("packed", "dense")
    for dtype in dtypes
}
CASES = [
    pytest.param(*case, texts, id="-".join(case))
    for case, texts in (EVERYTHING if FULL else USUAL).items()
]


@pytest.fixture
def model(request) -> RealModel:
    model = MODELS[request.param]
    assert fetched(lambda: model.path).is_file()
    return model


@pytest.mark.parametrize(
    ("model", "device", "weights", "dtype", "texts"), CASES, indirect=["model"]
)
def test_real_model(request, model, device, weights, dtype, texts):
    options = {"model_loader_extra_config": json.dumps({"weights": weights})}
    answers = model.answers
    # In bfloat16 an answer costs a step of decoding a token and says little.
    tokens = ANSWER if FULL or dtype == "float32" else 1
    engine: EngineProcess = request.getfixturevalue(f"{device}_engine")
    with engine.load(
        model.path, *CHUNK, dtype=dtype, probe="probes:bytes_by_form", **options
    ) as served:
        found = served.continued([answers[f"{text}.ids"].tolist() for text in texts], tokens)
    (held,) = served.probes
    errors = {}
    for text, (ids, logprobs) in zip(texts, found, strict=True):
        prompt = len(answers[f"{text}.ids"])
        errors[text] = _check(text, np.array(logprobs[: prompt - 1]), answers, dtype)
        if f"{text}.answer" in answers:
            _check_answer(ids[prompt:], answers, text, NEARLY_TIED[dtype])
    if weights == "packed":
        _check_bytes(model, device, held)
    print(_row(model.name, f"{weights}, {TITLES[device]}", dtype, errors))


@pytest.mark.parametrize("name", MODELS)
def test_documentation(name):
    """Each row says how much transformers' own is, or is within the limits."""
    lines = DOCUMENTATION.read_text().splitlines()
    own = {text: _own_error(MODELS[name].answers, text) for text in TEXTS}
    assert _row(name, "transformers", "bfloat16", own) in lines
    for (of, device, weights, dtype), texts in EVERYTHING.items():
        if of != name:
            continue
        start = f"| {TITLES[name]} | {weights}, {TITLES[device]} | {dtype} |"
        (row,) = (line for line in lines if line.startswith(start))
        errors = [float(cell) for cell in row.removeprefix(start).split("|") if cell.strip()]
        limits = [FLOAT32 if dtype == "float32" else BFLOAT16 * own[text] for text in texts]
        assert all(error <= limit for error, limit in zip(errors, limits, strict=True)), row


def _row(name: str, by: str, dtype: str, errors: dict[str, float]) -> str:
    """Of the documentation's table."""
    number = ".1e" if dtype == "float32" else ".3f"
    cells = [format(errors[text], number) if text in errors else "" for text in TEXTS]
    return "| " + " | ".join((TITLES[name], by, dtype, *cells)).rstrip() + " |"


def _own_error(expected: dict[str, np.ndarray], text: str) -> float:
    """Of transformers in bfloat16."""
    right, own = (expected[f"{text}.{dtype}"].astype(float) for dtype in ("float32", "bfloat16"))
    return np.abs(own - right).mean()


def _check(text: str, logprobs: np.ndarray, expected: dict[str, np.ndarray], dtype: str) -> float:
    """The mean error of a text's log-probabilities, which has a limit, as perplexity has."""
    right = expected[f"{text}.float32"].astype(float)
    error = np.abs(logprobs - right).mean()
    own = _own_error(expected, text)
    perplexity, of_transformers = (math.exp(-values.mean()) for values in (logprobs, right))
    print(
        f"{text}: mean error {error:.2e}, transformers' in bfloat16 {own:.2e}; "
        f"perplexity {perplexity:.4f}, transformers' {of_transformers:.4f}"
    )
    limit = FLOAT32 if dtype == "float32" else BFLOAT16 * own
    assert error <= limit
    # Errors of rounding cancel for the most part.
    most = FLOAT32 if dtype == "float32" else own / 2
    assert abs(math.log(perplexity / of_transformers)) <= most
    return error


def _check_answer(tokens: list[int], expected: dict[str, np.ndarray], text: str, tie: float):
    """The same tokens, up to one at which transformers itself was undecided."""
    right, margins = expected[f"{text}.answer"][: len(tokens)], expected[f"{text}.margins"]
    other = np.flatnonzero(right != tokens)
    print(f"{text}: {other[0] if len(other) else len(tokens)} tokens of the answer are the same")
    assert not len(other) or margins[other[0]] < tie, f"token {other[0]} of {text}"


def _check_bytes(model: RealModel, device: str, held: dict[str, int]) -> None:
    of_the_file = sum(held.values()) / model.weight_bytes
    print(f"{of_the_file:.3f} of the file's bytes: {held}")
    assert of_the_file <= BYTES[device]
