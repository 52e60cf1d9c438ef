"""Runs tests marked ``npu_sim`` on the simulated NPU.

Such tests run in a process of their own, all files with the same options of the marker in one,
started by ``python -m npu_sim run``; here, outside, each of the tests reports what it did there.
The options are those of that command: ``pytest.mark.npu_sim(soc="910B3", devices=4, memory_gb=1)``.
"""

from __future__ import annotations

import fcntl
import functools
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from kernel_cache import RUN

CHECKOUT = Path(__file__).resolve().parents[2]
INSIDE = "NPU_SIM_LIB" in os.environ
TIMEOUT = 300


def _options(item: pytest.Item) -> tuple[str, ...] | None:
    """Of the simulation that the test runs on; None where it runs here."""
    marker = item.get_closest_marker("npu_sim")
    if INSIDE or marker is None or marker.kwargs.get("own_process"):
        return None
    named = {"memory_gb": 1, **marker.kwargs}
    return tuple(text for key, value in named.items() for text in (_flag(key), str(value)))


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


@functools.cache
def _results(session: pytest.Session, options: tuple[str, ...]) -> dict[tuple[str, str], str]:
    """File and name of each test on this simulation -> "" where it passed, else what went wrong.

    Run once for all of pytest's processes.
    """
    run = Path(os.environ[RUN], "".join(options).replace("/", ""))
    with open(f"{run}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        report, output = run.with_suffix(".xml"), run.with_suffix(".log")
        if not output.exists():
            paths = sorted({item.path for item in session.items if _options(item) == options})
            _run(options, paths, report, output)
    said = output.read_text(errors="replace")[-6000:]
    results = dict.fromkeys([("", "")], f"did not run:\n{said}")
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            bad = case.find("failure") if case.find("failure") is not None else case.find("error")
            key = case.get("classname").rpartition(".")[2], case.get("name")
            results[key] = "" if bad is None else bad.text or bad.get("message") or "?"
    return results


def _run(options: tuple[str, ...], paths: list[Path], report: Path, output: Path) -> None:
    command = [sys.executable, "-m", "npu_sim", "run", *options, "--", sys.executable, "-m"]
    command += ["pytest", "-q", "-p", "no:cacheprovider", *map(str, paths), f"--junitxml={report}"]
    with open(output, "w") as log:
        try:
            subprocess.run(
                command,
                env={**os.environ, "PYTHONPATH": str(CHECKOUT / "python")},
                cwd=CHECKOUT,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            log.write(f"\nthe simulation did not end within {TIMEOUT} s")


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    options = _options(pyfuncitem)
    if options is None:
        return None
    results = _results(pyfuncitem.session, options)
    problem = results.get((pyfuncitem.path.stem, pyfuncitem.name), results["", ""])
    if problem:
        pytest.fail(f"on the simulated NPU:\n{problem}", pytrace=False)
    return True
