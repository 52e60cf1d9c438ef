"""Spoiled files are refused in one line, or loaded; and the fuzzer notices where they are not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fuzz import runner
from fuzz.runner import Fuzzer

#: They start processes, and wait for some.
pytestmark = pytest.mark.slow

TEST = Path(__file__).parent

#: How long the suite looks; ``make fuzz SECONDS=...`` looks longer.
SECONDS = 20


def test_spoiled_files(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "fuzz", "--jobs", "1"]
    command += ["--seconds", str(SECONDS), "--seed", "1", "--folder", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(TEST)}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    print(run.stdout)
    assert run.returncode == 0, run.stdout + run.stderr
    counts = re.search(r"(\d+) spoiled files of seed 1 .* (\d+) loaded whole, 0 faults", run.stdout)
    tried, whole = map(int, counts.groups())
    # Neither is everything refused, nor anything let through.
    assert tried > 50 and 0 < whole < tried / 2


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    fuzzer = Fuzzer(0, tmp_path_factory.mktemp("faults"))
    yield fuzzer
    fuzzer.close()


def _raises(*_):
    raise RuntimeError("a bare error")


def _ends(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def _computes(*_):
    while True:
        pass


def _waits(*_):
    time.sleep(60)


def _takes_memory(*_):
    return {"open": str(len(b"\1" * (2 * runner.MEMORY)))}


@pytest.mark.parametrize(
    "fault, what",
    [
        (_raises, "RuntimeError: a bare error"),
        (_ends, "signal SIGKILL"),
        (_computes, "more than 1 s"),
        (_waits, "waited for 1 s"),
        (_takes_memory, "MemoryError"),
    ],
)
def test_faults_are_noticed(monkeypatch, fuzzer, fault, what):
    monkeypatch.setattr(runner, "check", fault)
    if fault in (_computes, _waits):
        monkeypatch.setattr(runner, "SECONDS", 1)
    if fault is _waits:
        monkeypatch.setattr(runner, "WAITED", 1)
    report = fuzzer.run(seconds=60, files=2, jobs=1)
    assert report.files == 2 and report.whole == 0
    assert all(what in found for found in report.faults.values()), report.faults
    kept = fuzzer.keep(1, report.faults[1])
    # The same number is the same file.
    assert kept.read_bytes() == Fuzzer.files(fuzzer, 1)[0]
    assert what in kept.with_suffix(".txt").read_text()
