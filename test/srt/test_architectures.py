"""Every architecture of the table, served and compared with transformers in float32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from hf_models import TINY, Written
from random_model import PROMPT
from serving import CPU, NPU, Server, cpu_environment

#: Mean absolute error of the log-probabilities of a prompt's tokens.
LIMITS = {"cpu": 1e-4, "npu": 0.005}

#: What the server writes when a step has been replayed and compared with the model's own.
REPLAYED = "Decode steps of 1 are replayed."

#: Biases of experts, matrices joined while loading, and projections that are one in the file.
ON_TWO_RANKS = ("gpt-oss", "deepseek-v3", "phi3")


def _served_on(device: str) -> list[str]:
    return [name for name, tiny in TINY.items() if device not in tiny.refused]


@contextlib.contextmanager
def _checked(
    zygote, log, model: Written, device: str, *arguments: str, environment=None
) -> Iterator[Server]:
    # The prompt is given as token ids; these files have another model's tokenizer.
    arguments = (*arguments, "--skip-tokenizer-init")
    with zygote.serve(model.path, log, *arguments, environment=environment) as server:
        assert server.mean_error(PROMPT, model.logprobs()) <= LIMITS[device]
        yield server


# A window that holds the whole prompt is no test where windows work.
@pytest.mark.parametrize("name", [n for n in _served_on("cpu") if "within-window" not in n])
def test_on_the_cpu(zygote, log, tiny_model, name):
    """Steps of decoding are replayed, which the server does where nothing changes by it."""
    arguments = (*CPU, "--dtype", "float32")
    with _checked(zygote, log, tiny_model(name), "cpu", *arguments) as server:
        server.generate(PROMPT[:8], {"max_new_tokens": 5, "ignore_eos": True})
        assert REPLAYED in log.read_text()


@pytest.mark.parametrize("name", ON_TWO_RANKS)
def test_on_two_ranks(zygote, log, tiny_model, name):
    arguments = (*CPU, "--dtype", "float32", "--tp-size", "2")
    environment = cpu_environment(2)
    with _checked(zygote, log, tiny_model(name), "cpu", *arguments, environment=environment):
        pass


@pytest.mark.parametrize("name", _served_on("npu"))
def test_on_the_simulated_npu(npu_zygote, log, tiny_model, name):
    with _checked(npu_zygote, log, tiny_model(name), "npu", *NPU, "--dtype", "float16"):
        pass
