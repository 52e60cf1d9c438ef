"""Run the benchmarks of this folder: ``make bench``, or ``ARGS='decode --types Q4_K'`` for one;
``ARGS=--plot`` draws the pictures of docs/performance.md from its tables (needs matplotlib).

A benchmark is a module with ``main(arguments)`` that prints its tables; the first line of its
docstring is its title.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import signal
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
PYTHON = FOLDER.parent / "python"
sys.path[:0] = [str(PYTHON), str(PYTHON / "make"), str(FOLDER)]


def benchmarks() -> list[str]:
    names = (path.stem for path in FOLDER.glob("*.py"))
    return sorted(name for name in names if name != "run" and not name.startswith("_"))


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--plot"]:
        import _pictures

        _pictures.draw()
        return 0
    chosen = [arguments.pop(0)] if arguments and not arguments[0].startswith("-") else benchmarks()
    for name in chosen:
        if name not in benchmarks():
            print(f"no benchmark {name}: there are {', '.join(benchmarks())}", file=sys.stderr)
            return 2
        spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        print(f"## {module.__doc__.splitlines()[0]}\n\n{processor()}\n", flush=True)
        module.main(arguments)
    return 0


if __name__ == "__main__":
    # A benchmark that is stopped also ends the servers it started.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main(sys.argv[1:]))
