"""Served on a real Ascend NPU, where there is one: ``pytest -m npu``."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from serving import NPU, launch

DATA = Path(__file__).parents[2] / "data"

#: Mean absolute error of log-probabilities in float16.
LIMIT = 0.005


def _has_npu() -> bool:
    if importlib.util.find_spec("torch_npu") is None:
        return False
    import torch
    import torch_npu  # noqa: F401

    return torch.npu.is_available()


pytestmark = [
    pytest.mark.npu,
    pytest.mark.skipif(not _has_npu(), reason="needs an Ascend NPU, with CANN and torch_npu"),
]


@pytest.mark.parametrize("name", sorted(path.stem for path in DATA.glob("*.gguf")))
def test_quantized_by_llama_cpp(log, name):
    reference = json.loads((DATA / f"{name}.ref.json").read_text())
    with launch(DATA / f"{name}.gguf", log, *NPU, "--dtype", "float16") as server:
        error = server.mean_error(reference["input_ids"], reference["token_logprobs"])
    assert error <= LIMIT
