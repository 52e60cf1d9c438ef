"""make fingerprints: what an engine changes of what the patch knows."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

import fingerprints as command
from ascend_gguf.srt import fingerprints


@pytest.fixture
def engine(tmp_path) -> Path:
    """The files of the installed engine that are looked at."""
    for module in {key.partition(":")[0] for key in fingerprints.known()["0.5.23"]}:
        path = Path(*module.split(".")).with_suffix(".py")
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(fingerprints.installed() / path, tmp_path / path)
    return tmp_path


def test_changed_and_missing_functions_are_listed(engine, monkeypatch, capsys):
    sampler = engine / "layers" / "sampler.py"
    sampler.write_text(sampler.read_text().replace("def _sample_from_probs(", "def _sample_from("))
    lora = engine / "managers" / "utils.py"
    lora.write_text(lora.read_text().replace("def copy_to_cpu(self", "def copy_to_cpu(this"))
    monkeypatch.setattr(command, "folder_of", lambda release: fingerprints.installed())
    monkeypatch.setattr(sys, "argv", ["fingerprints", "0.6", "--folder", str(engine)])
    before = fingerprints.KNOWN_FILE.read_bytes()
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3].startswith("SGLang 0.6 beside 0.5.23: 2 of ")
    assert sorted(lines[-2:]) == [
        "  layers.sampler:Sampler._sample_from_probs: is not there",
        "  managers.utils:GenerationBatchResult.copy_to_cpu: changed",
    ]
    assert fingerprints.KNOWN_FILE.read_bytes() == before
