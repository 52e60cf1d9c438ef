"""Word problems solved through the API: every type, layout and device, dense and MoE.

The models of test/counting can count, so a swapped expert or a broken tokenizer is a wrong answer
here.  They are so sure that they bear a wrong scale: that shows in how far they diverge from F16.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from counting.reference import (
    DATA,
    MOST_TOKENS,
    PROBLEMS,
    divergence,
    served_distributions,
    tokenizer,
)
from evaluation import evaluate
from rewrite import rewrite
from serving import CPU, NPU, cpu_environment

#: The problems asked here; ``make eval`` asks as many as one likes.
ASKED = 64

#: The share of problems by which a model may solve fewer or more than its original in F16, which
#: transformers ran in float32.
WITHIN = 0.02

#: Mean divergence from F16 at right answers: three to five times the largest of docs/accuracy.md.
DIVERGENCE = {"Q8_0": 2e-6, "Q4_K_M": 2e-4, "Q2_K": 5e-4}

DEVICES = {"cpu": CPU, "npu": NPU}

#: Every value of every column with every value of each other one, for both kinds of model.
SERVED = [
    # type, layout, device, ranks
    ("Q4_K_M", "packed", "cpu", 1),
    ("Q4_K_M", "dense", "npu", 2),
    ("Q4_K_M", "packed", "npu", 1),
    ("Q8_0", "dense", "cpu", 2),
    ("Q8_0", "packed", "npu", 2),
    ("Q2_K", "packed", "cpu", 2),
    ("Q2_K", "dense", "npu", 1),
]


@pytest.fixture(scope="session")
def zygotes(zygote, npu_zygote):
    return {"cpu": zygote, "npu": npu_zygote}


def _original(kind: str) -> np.ndarray:
    """Whether the model in F16 solves each problem that is asked."""
    return np.load(DATA / f"{kind}-F16.npz")["right"][:ASKED]


@pytest.mark.parametrize(("type_", "layout", "device", "ranks"), SERVED)
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_problems_solved(zygotes, log, kind, type_, layout, device, ranks):
    original = _original(kind).mean()
    arguments = (
        *DEVICES[device],
        *("--model-loader-extra-config", json.dumps({"weights": layout})),
        *("--tp-size", str(ranks)),
    )
    environment = cpu_environment(ranks) if device == "cpu" and ranks > 1 else None
    path = DATA / f"{kind}-{type_}.gguf"
    with zygotes[device].serve(path, log, *arguments, environment=environment) as server:
        result = evaluate(server.url, PROBLEMS[:ASKED], max_tokens=MOST_TOKENS)
        diverged = divergence(served_distributions(server), kind)
    print(f"{path.stem}: {result}; F16 {original:.3f}; divergence {diverged:.1e}")
    assert abs(result.accuracy - original) <= WITHIN
    assert diverged <= DIVERGENCE[type_]


def _swapped_experts(name: str, data: np.ndarray) -> list[tuple[str, np.ndarray]]:
    swapped = name == "blk.0.ffn_down_exps.weight"
    return [(name, data[[1, 0, *range(2, len(data))]] if swapped else data)]


def _scaled(name: str, data: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """One matrix a quarter larger than it is: each Q8_0 block begins with its scale."""
    if name == "blk.1.attn_v.weight":
        data = data.copy()
        scales = data.reshape(-1, 34)[:, :2].copy().view(np.float16)
        data.reshape(-1, 34)[:, :2] = (scales * 1.25).astype(np.float16).view(np.uint8)
    return [(name, data)]


@pytest.mark.parametrize("damage", ["expert", "token"])
def test_wrong_answers_are_noticed(zygote, log, tmp_path, damage):
    changes = {"edit": _swapped_experts}
    if damage == "token":
        tokens = list(tokenizer().get_vocab())
        tokens.sort(key=tokenizer().convert_tokens_to_ids)
        four, seven = map(tokenizer().convert_tokens_to_ids, "47")
        tokens[four], tokens[seven] = "7", "4"
        changes = {"metadata": {"tokenizer.ggml.tokens": tokens}}
    rewrite(DATA / "moe-Q8_0.gguf", tmp_path / "model.gguf", **changes)
    some = 50
    with zygote.serve(tmp_path / "model.gguf", log, *CPU) as server:
        result = evaluate(server.url, PROBLEMS[:some], max_tokens=MOST_TOKENS)
    print(f"{damage}: {result}")
    assert result.accuracy < _original("moe")[:some].mean() - WITHIN


def test_a_wrong_scale_is_noticed(zygote, log, tmp_path):
    rewrite(DATA / "moe-Q8_0.gguf", tmp_path / "model.gguf", _scaled)
    with zygote.serve(tmp_path / "model.gguf", log, *CPU) as server:
        diverged = divergence(served_distributions(server), "moe")
    print(f"divergence {diverged:.1e}")
    assert diverged > DIVERGENCE["Q8_0"]
