"""python -m fuzz [--seconds N] [--files N] [--seed N] [--jobs N], or --again FILE."""

from __future__ import annotations

import argparse
import math
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

# One thread: a process that is forked has no others, and memory can be told apart.
os.environ |= {
    "TOKENIZERS_PARALLELISM": "false",
    "RAYON_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
}


def main() -> int:
    arguments = _arguments()
    import logging
    import warnings

    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    from fuzz.runner import Fuzzer

    fuzzer = Fuzzer(arguments.seed, arguments.folder)
    try:
        fuzzer.check_seeds()
        if arguments.again:
            return _again(arguments.again)
        begin = time.monotonic()
        seconds = arguments.seconds or (math.inf if arguments.files else 60)
        files = arguments.files or 10**9
        report = fuzzer.run(seconds, files, arguments.jobs, arguments.first)
        seconds = time.monotonic() - begin
        return _tell(fuzzer, report, seconds)
    finally:
        fuzzer.close()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, help="at most; 60 by default, without --files")
    parser.add_argument("--files", type=int, help="how many, at most")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="other files")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path("build/fuzz"), help="of faults")
    parser.add_argument("--again", type=Path, help="try one file that was kept")
    return parser.parse_args()


def _tell(fuzzer, report, seconds: float) -> int:
    print(
        f"{report.files} spoiled files of seed {fuzzer.seed} in {seconds:.0f} s: "
        f"{report.whole} loaded whole, {len(report.faults)} faults. "
        f"Refused by step: {dict(report.refused)}. "
        f"Slowest {report.slowest[0]:.2f} s (file {report.slowest[1]}), most memory beyond the "
        f"file {report.largest[0] / 1e6:.0f} MB (file {report.largest[1]})."
    )
    if report.faults:
        print("Try one again: make fuzz AGAIN=FILE")
    return 1 if report.faults else 0


def _again(path: Path) -> int:
    from fuzz.check import check
    from fuzz.runner import watch

    enter: Callable[[str], None] = lambda step: print(step, flush=True)  # noqa: E731
    size = sum(part.stat().st_size for part in path.parent.glob("*.gguf"))
    watch(size)
    for step, error in check(path, random.Random(0), enter).items():
        print(f"{step}: {error or 'nothing to say'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
