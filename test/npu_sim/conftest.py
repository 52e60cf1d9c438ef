"""Runs tests marked ``npu_sim`` on the simulated NPU.

Such a test file runs in a process of its own, once for all of its tests, started by
``python -m npu_sim run``; here, outside, each of its tests reports what it did there.  The marker
takes the options of that command: ``pytest.mark.npu_sim(soc="910B3", devices=4, memory_gb=1)``.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
INSIDE = "NPU_SIM_LIB" in os.environ
TIMEOUT = 150


@functools.cache
def _results(path: Path, options: tuple) -> dict[str, str]:
    """Name of each test of the file -> "" where it passed, else what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        pytest_inside = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(path)]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "npu_sim", "run", *options, "--"]
                + [*pytest_inside, f"--junitxml={report}"],
                env={**os.environ, "PYTHONPATH": str(CHECKOUT / "python")},
                cwd=CHECKOUT,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired as late:
            return {"": f"the simulation did not end within {TIMEOUT} s:\n{late.stdout}"}
        output = f"{done.stdout}\n{done.stderr}"[-6000:]
        if not report.exists():
            return {"": f"the simulation ended with status {done.returncode}:\n{output}"}
        results = {}
        for case in ElementTree.parse(report).iter("testcase"):
            bad = case.find("failure") if case.find("failure") is not None else case.find("error")
            results[case.get("name")] = "" if bad is None else bad.text or bad.get("message") or "?"
        results.setdefault("", f"did not run:\n{output}")
        return results


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    marker = pyfuncitem.get_closest_marker("npu_sim")
    if INSIDE or marker is None or marker.kwargs.get("own_process"):
        return None
    options = []
    for name, value in {"memory_gb": 1, **marker.kwargs}.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    results = _results(pyfuncitem.path, tuple(options))
    problem = results.get(pyfuncitem.name, results[""])
    if problem:
        pytest.fail(f"on the simulated NPU:\n{problem}", pytrace=False)
    return True
