"""Real models of the package index, against what transformers says of them (``real_models.py``).

``FULL=1`` in the environment adds what a usual run has no time for.
"""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

from engine_process import EngineProcess
from fetch import FetchError
from real_models import ANSWER, MODELS, SHORT, TEXTS, RealModel

FULL = bool(os.environ.get("FULL"))

#: Mean error of log-probabilities in float32; in bfloat16, how many times transformers' own.
FLOAT32, BFLOAT16 = 3e-5, 1.2

#: A token may be another than transformers' where the next best is as near as this (log p).
NEARLY_TIED = {"float32": 1e-3, "bfloat16": 0.25}

#: Of a prompt, at once: a row of logits is a megabyte.
CHUNK = ("--chunked-prefill-size", "512", "--max-total-tokens", "8192")

#: Bytes of the weights, of those of the file.
BYTES = {"cpu": 1.1, "npu": 1.25}


#: What a usual run has time for.
USUAL = {
    ("smollm2-135m-Q4_1", "cpu", "packed", "float32"): tuple(TEXTS),
    ("smollm2-135m-Q4_1", "cpu", "packed", "bfloat16"): SHORT,
    ("smollm2-135m-Q4_1", "cpu", "dense", "float32"): ("prose",),
    ("gemma3-270m-Q4_K_M", "cpu", "packed", "float32"): SHORT,
    ("gemma3-270m-Q4_K_M", "cpu", "packed", "bfloat16"): ("prose", "code"),
}
EVERYTHING = {
    (name, device, weights, dtype): tuple(TEXTS) if device == "cpu" else SHORT
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
    try:
        assert model.path.is_file()
    except FetchError as error:
        pytest.skip(str(error))
    return model


@pytest.mark.parametrize(
    ("model", "device", "weights", "dtype", "texts"), CASES, indirect=["model"]
)
def test_real_model(request, model, device, weights, dtype, texts):
    options = {"model_loader_extra_config": json.dumps({"weights": weights})}
    answers = model.answers
    texts = [text for text in texts if f"{text}.{dtype}" in answers]
    # In bfloat16 an answer costs a step of decoding a token and says little.
    tokens = ANSWER if dtype == "float32" else 1
    engine: EngineProcess = request.getfixturevalue(f"{device}_engine")
    with engine.load(
        model.path, *CHUNK, dtype=dtype, probe="probes:bytes_by_form", **options
    ) as served:
        found = served.continued([answers[f"{text}.ids"].tolist() for text in texts], tokens)
    (held,) = served.probes
    for text, (ids, logprobs) in zip(texts, found, strict=True):
        prompt = len(answers[f"{text}.ids"])
        _check(text, np.array(logprobs[: prompt - 1]), answers, dtype)
        if f"{text}.answer" in answers:
            _check_answer(ids[prompt:], answers, text, NEARLY_TIED[dtype])
    if weights == "packed":
        _check_bytes(model, device, held)


def _check(text: str, logprobs: np.ndarray, expected: dict[str, np.ndarray], dtype: str) -> None:
    right = expected[f"{text}.float32"].astype(float)
    error = np.abs(logprobs - right).mean()
    own = np.abs(expected.get(f"{text}.bfloat16", right).astype(float) - right).mean()
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


def _check_answer(tokens: list[int], expected: dict[str, np.ndarray], text: str, tie: float):
    """The same tokens up to the first at which transformers itself was undecided."""
    right, margins = expected[f"{text}.answer"], expected[f"{text}.margins"]
    decided = int(np.argmax(margins < tie)) if (margins < tie).any() else len(margins)
    count = min(decided, len(tokens))
    assert tokens[:count] == right[:count].tolist()


def _check_bytes(model: RealModel, device: str, held: dict[str, int]) -> None:
    of_the_file = sum(held.values()) / model.weight_bytes
    print(f"{of_the_file:.3f} of the file's bytes: {held}")
    assert of_the_file <= BYTES[device]
