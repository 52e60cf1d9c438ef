"""Every architecture of the table, served and compared with transformers in float32."""

from __future__ import annotations

import pytest

from hf_models import TINY, Written
from random_model import PROMPT
from serving import CPU, NPU

#: Mean absolute error of the log-probabilities of a prompt's tokens.
LIMITS = {"cpu": 1e-4, "npu": 0.005}


def _served_on(device: str) -> list[str]:
    return [name for name, tiny in TINY.items() if device not in tiny.refused]


def _check(zygote, log, model: Written, device: str, *arguments: str) -> None:
    # The prompt is given as token ids; these files have another model's tokenizer.
    with zygote.serve(model.path, log, *arguments, "--skip-tokenizer-init") as server:
        assert server.mean_error(PROMPT, model.logprobs()) <= LIMITS[device]


@pytest.mark.parametrize("name", _served_on("cpu"))
def test_on_the_cpu(zygote, log, tiny_model, name):
    _check(zygote, log, tiny_model(name), "cpu", *CPU, "--dtype", "float32")


@pytest.mark.parametrize("name", _served_on("npu"))
def test_on_the_simulated_npu(npu_zygote, log, tiny_model, name):
    _check(npu_zygote, log, tiny_model(name), "npu", *NPU, "--dtype", "float16")
