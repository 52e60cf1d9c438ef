"""The simulation is built aside and only where it is wanted."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from npu_sim.build import build
from npu_sim.environment import environment

PACKAGES = Path(__file__).resolve().parents[2] / "python"


@pytest.fixture(scope="module")
def libraries() -> Path:
    return build()


def test_a_second_build_finds_the_first(libraries):
    before = libraries.stat().st_mtime_ns
    assert build(log=pytest.fail) == libraries
    assert libraries.stat().st_mtime_ns == before


def test_builds_may_run_at_once(libraries):
    command = [sys.executable, "-m", "npu_sim", "build"]
    env = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    several = [subprocess.Popen(command, env=env) for _ in range(3)]
    assert [p.wait() for p in several] == [0, 0, 0]


def test_the_plain_environment_does_not_see_torch_npu(libraries):
    assert importlib.util.find_spec("torch_npu") is None


def test_environment_names_the_product(libraries):
    env = environment(libraries, soc="910_93", devices=2, base={"PYTHONPATH": "/elsewhere"})
    assert env["NPU_SIM_SOC"] == "Ascend910_9391"
    assert env["PYTHONPATH"].split(os.pathsep)[-1] == "/elsewhere"
    assert env["SGLANG_USE_CPU_ENGINE"] == "0"


def test_a_command_is_wanted():
    command = [sys.executable, "-m", "npu_sim", "run", "--"]
    env = {**os.environ, "PYTHONPATH": str(PACKAGES)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "no command given" in done.stderr
