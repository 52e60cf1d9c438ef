"""Word problems solved through the API: every type, form and device, dense and mixture of experts.

The models of test/counting can count, so a wrong scale, a swapped expert or a broken tokenizer is a
wrong answer here.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from counting.reference import DATA, MOST_TOKENS, PROBLEMS
from evaluation import evaluate
from serving import CPU, NPU, cpu_environment

#: The share of problems by which a model may solve fewer or more than its original in F16, which
#: transformers ran in float32.
WITHIN = 0.02

DEVICES = {"cpu": CPU, "npu": NPU}

#: Every value of every column with every value of each other one, for both kinds of model.
SERVED = [
    # type, form, device, ranks
    ("Q4_K_M", "packed", "cpu", 1),
    ("Q4_K_M", "dense", "npu", 2),
    ("Q4_K_M", "packed", "npu", 1),
    ("Q8_0", "dense", "cpu", 2),
    ("Q8_0", "packed", "npu", 2),
    ("Q6_K", "packed", "cpu", 2),
    ("Q6_K", "dense", "npu", 1),
]


@pytest.fixture(scope="session")
def zygotes(zygote, npu_zygote):
    return {"cpu": zygote, "npu": npu_zygote}


@pytest.mark.parametrize(("type_", "form", "device", "ranks"), SERVED)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_problems_solved(zygotes, log, kind, type_, form, device, ranks):
    original = np.load(DATA / f"{kind}-F16.npz")["right"].mean()
    arguments = (
        *DEVICES[device],
        *("--model-loader-extra-config", json.dumps({"weights": form})),
        *("--tp-size", str(ranks)),
    )
    environment = cpu_environment(ranks) if device == "cpu" and ranks > 1 else None
    path = DATA / f"{kind}-{type_}.gguf"
    with zygotes[device].serve(path, log, *arguments, environment=environment) as server:
        result = evaluate(server.url, PROBLEMS, max_tokens=MOST_TOKENS)
    print(f"{path.stem}: {result}; F16 {original:.3f}")
    assert abs(result.accuracy - original) <= WITHIN
