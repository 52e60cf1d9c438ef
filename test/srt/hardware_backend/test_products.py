"""Served on each simulated product: with the layouts that it takes, and the same numbers."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import NPU_ONE, Zygote, npu_simulation

DATA = Path(__file__).parents[2] / "data"
DENSE, MOE = "qwen3-dense-Q4_K_M", "qwen3-moe-Q4_K_M"
#: With RoPE by an operator of its own, which the A2 and A3 alone have.
PLAIN = "qwen2-dense-Q4_K_M"

#: Mean absolute error of log-probabilities in float16.
LIMIT = 0.01


def served(
    zygote: Zygote,
    log: Path,
    name: str,
    *options: str,
    dtype: str = "float16",
    limit: float = LIMIT,
    **environment: str,
) -> str:
    """What a server says that computes right."""
    path = DATA / f"{name}.gguf"
    reference = json.loads(path.with_suffix(".ref.json").read_text())
    arguments = (*NPU_ONE, "--skip-tokenizer-init", "--dtype", dtype, *options)
    with zygote.serve(path, log, *arguments, environment=environment) as server:
        assert server.mean_error(reference["input_ids"], reference["token_logprobs"]) <= limit
    return log.read_text()


def layouts(text: str) -> set[str]:
    """The names of the packed layouts in the report."""
    rows = re.findall(r"^([a-z][a-z0-9 ,]*?) +\d[\d,]* +\d", text, re.M)
    return {row for row in rows if row not in ("all", "dense", "vectors", "shared offsets")}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (DENSE, {"int4", "int8, requantized", "planes, rows"}),
        (MOE, {"int4, experts", "planes, experts"}),
    ],
)
def test_atlas_a3(npu_zygote, log, name, expected):
    found = layouts(served(npu_zygote, log, name, NPU_SIM_SOC="Ascend910_9391"))
    assert expected <= found


@contextlib.contextmanager
def zygote_of(soc: str) -> Iterator[Zygote]:
    prefix, environment = npu_simulation("--soc", soc)
    with contextlib.closing(Zygote(environment, prefix)) as zygote:
        yield zygote


def test_ascend_950(log):
    with zygote_of("950") as zygote:
        assert layouts(served(zygote, log, DENSE)) == {"int4", "int8, requantized", "planes, rows"}
        served(zygote, log, PLAIN)
        text = served(zygote, log, MOE)
    # Its operators for experts may not have groups: tried before loading, and then left alone.
    for name in ("int4, experts", "planes, experts"):
        tried = rf"{name} weights, which Ascend950PR_9599 may not take, are not used: {name} 2 x 64"
        assert re.search(rf"{tried} x 256 in float16: RuntimeError: EZ1001: npu_grouped_mat", text)
    assert layouts(text) == {"int4, rows", "int8", "planes"}
    assert "falling back" not in text


def test_310p(log, tiny_model):
    """Neither attention nor rows for experts have an operator there: torch's own compute them.

    It does not compute in bfloat16, which the files ask for.
    """
    with zygote_of("310P3") as zygote:
        for name in (DENSE, MOE):
            text = served(zygote, log, name, dtype="auto")
            assert "Load weight end" in text and "K size" in text and "torch.float16" in text
            assert "attention is computed by torch's operators" in text
            assert re.search("int8 weights, which Ascend310P3 may not take, are not used: ", text)
            assert not layouts(text) and "falling back" not in text
        served(zygote, log, PLAIN)
        model = tiny_model("deepseek-v2-lite")
        options = (*NPU_ONE, "--skip-tokenizer-init", "--chunked-prefill-size", "128")
        with zygote.serve(model.path, log, *options) as server:
            prompt = list(range(3, 303))
            assert server.mean_error(prompt, model.logprobs(prompt)) <= LIMIT
        # On demand: each weight is rounded once more.
        options = ("--model-loader-extra-config", json.dumps({"weights": "int8"}))
        text = served(zygote, log, DENSE, *options, limit=0.05)
        assert layouts(text) == {"int8, a scale a row"} and "falling back" not in text
