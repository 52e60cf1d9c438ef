"""Lint, types and the library's tests: ``make check``.  Arguments go to pytest.

Runs in ``.venv`` and installs the tools that are missing there: the ``check`` extra of
pyproject.toml.  Tests that start the engine, or are marked ``slow``, are left to ``make test``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from setup_env import CHECKOUT, REQUIREMENTS

#: Folders and files of test/ that do not start a server.
LIBRARY_TESTS = [
    path
    for path in sorted((CHECKOUT / "test").iterdir())
    if path.name.startswith("test_") or (path.is_dir() and any(path.glob("test_*.py")))
    if path.name not in ("counting", "npu_sim", "peers", "setup", "srt")
]
#: More processes would wait for memory.
_MAX_WORKERS = 4


def requirements() -> list[str]:
    """The ``check`` extra."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return project["optional-dependencies"]["check"]


def missing(wanted: list[str]) -> list[str]:
    """The requirements that the environment does not satisfy."""
    return [line for line in wanted if not _is_satisfied(Requirement(line))]


def _is_satisfied(requirement: Requirement) -> bool:
    try:
        return metadata.version(requirement.name) in requirement.specifier
    except metadata.PackageNotFoundError:
        return False


def commands(pytest_arguments: list[str]) -> dict[str, list[str | Path]]:
    """The commands to run, by the name of the step."""
    python = sys.executable
    workers = min(len(os.sched_getaffinity(0)), _MAX_WORKERS)
    return {
        "lint": [python, "-m", "ruff", "check", "--quiet"],
        "format": [python, "-m", "ruff", "format", "--check", "--quiet"],
        "types": [python, "-m", "mypy"],
        "tests": [
            *(python, "-m", "pytest", *LIBRARY_TESTS, "-q", "-m", "not slow and not engine"),
            *("--numprocesses", str(workers), "--dist", "loadfile", *pytest_arguments),
        ],
    }  # fmt: skip


def run(steps: dict[str, list[str | Path]]) -> list[str]:
    """Run all ``steps``, also after a failure; returns the names of those that failed."""
    failed = []
    for name, command in steps.items():
        started = time.monotonic()
        print(f"--- {name}", flush=True)
        passed = subprocess.run(command, cwd=CHECKOUT).returncode == 0
        print(f"{name} {'passed' if passed else 'FAILED'} ({time.monotonic() - started:.1f} s)")
        if not passed:
            failed.append(name)
    return failed


def main() -> int:
    if lacking := missing(requirements()):
        print(f"installing {', '.join(lacking)}", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-qq"]
        # The constraints keep the engine's packages unchanged.
        if subprocess.run([*pip, "-c", REQUIREMENTS, *lacking]).returncode:
            print(f"make check: pip could not install {', '.join(lacking)}", file=sys.stderr)
            return 1
    try:
        failed = run(commands(sys.argv[1:]))
    except KeyboardInterrupt:
        return 130
    if failed:
        print(f"make check: {', '.join(failed)} failed", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
