"""The harness that most tests of numbers stand on: it computes what a server computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine_process import EngineFailed
from serving import CPU, group_members, mean_error

MODEL = Path(__file__).with_name("data") / "qwen3-dense-Q4_K_M.gguf"
REFERENCE = json.loads(MODEL.with_suffix(".ref.json").read_text())
PROMPT = REFERENCE["input_ids"]
NEW = 12


@pytest.fixture(scope="module")
def score(cpu_engine):
    return cpu_engine.score(MODEL, PROMPT, NEW, dtype="float32", probe="probes:bytes_by_form")


def test_gives_what_a_server_gives(zygote, log, score):
    arguments = (*CPU, "--dtype", "float32", "--skip-tokenizer-init")
    with zygote.serve(MODEL, log, *arguments) as server:
        tokens, logprobs = server.continued(PROMPT, NEW)
    assert score.tokens == tokens
    assert mean_error(score.logprobs, logprobs) <= 1e-5


def test_prefill_decode_and_cached_prompt(score):
    assert mean_error(score.logprobs[: len(PROMPT) - 1], REFERENCE["token_logprobs"]) <= 1e-4
    assert len(score.logprobs) == len(score.tokens) - 1 == len(PROMPT) - 1 + NEW
    assert score.cached_tokens == len(PROMPT)
    assert mean_error(score.cached_logprobs, score.logprobs[1 - NEW :]) <= 1e-4
    assert "CPU decode graph active for batch size 1" in score.log


@pytest.mark.parametrize("ranks", [{"tp_size": 2}, {"pp_size": 2}], ids=["tp2", "pp2"])
def test_several_ranks(cpu_engine, score, ranks):
    probe = "probes:bytes_by_form"
    found = cpu_engine.score(MODEL, PROMPT, NEW, dtype="float32", probe=probe, **ranks)
    assert mean_error(found.logprobs, score.logprobs) <= 1e-4
    assert len(found.probes) == 2
    # Each rank holds its part.
    assert all(part["blocks"] < score.probes[0]["blocks"] for part in found.probes)


def test_a_failure_is_told_and_ends_nothing_else(cpu_engine, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(MODEL.read_bytes()[:-1000])
    with pytest.raises(EngineFailed) as failed:
        cpu_engine.score(broken, PROMPT, NEW)
    assert str(broken) in failed.value.reason
    with cpu_engine.load(MODEL, dtype="float32") as model:
        # Raised by the engine for this request alone.
        with pytest.raises(ValueError, match="max_new_tokens"):
            model.generate(input_ids=PROMPT, sampling_params={"max_new_tokens": -1})
        assert model.score(PROMPT, NEW).tokens
        pid = model.pid
    assert not group_members(pid)
