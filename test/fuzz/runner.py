"""Spoiled files in forked processes, whose end, time and memory are watched."""

from __future__ import annotations

import faulthandler
import json
import math
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

from fuzz.check import check
from fuzz.container import assemble
from fuzz.mutations import mutated
from fuzz.seeds import seeds

#: What a file may take: seconds of the processor, and bytes of memory beside its own size.
SECONDS = 10
MEMORY = 300 << 20
#: Seconds after which a process that waits for something is given up: others use the machine too.
WAITED = 120

_BATCH = 1000  # files a process
_PAGE = resource.getpagesize()


@dataclass
class Report:
    """What a run found.

    Attributes:
        files: how many were tried.
        whole: how many nothing was said against.
        refused: by step, how many were refused there.
        faults: by number of the file, what went wrong.
        slowest: seconds, number.
        largest: bytes beyond the file, number.
    """

    files: int = 0
    whole: int = 0
    refused: Counter = field(default_factory=Counter)
    faults: dict[int, str] = field(default_factory=dict)
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[int, int] = (0, -1)


class Fuzzer:
    """Makes the n-th file of a seed number, and tries files.

    Args:
        seed: another seed, other files.
        folder: where files that are at fault are kept.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self._seeds = seeds()
        self._assembled = [assemble(contents) for contents in self._seeds]
        # The files of this run: memory, where there is such a place.
        memory = Path("/dev/shm")
        self._work = Path(mkdtemp(prefix="fuzz-", dir=memory if memory.is_dir() else None))

    def close(self) -> None:
        shutil.rmtree(self._work, ignore_errors=True)

    def files(self, number: int) -> list[bytes]:
        """The ``number``-th spoiled model."""
        source = random.Random(f"{self.seed}:{number}")
        return mutated(source, self._seeds, self._assembled)

    def check_seeds(self) -> None:
        """What is not spoiled is loaded, which compiles what the processes share."""
        from fuzz.check import warm_up

        def paths() -> Iterator[Path]:
            for number, data in enumerate(self._assembled):
                yield _write(self._work, f"seed{number}", [data])

        warm_up(paths())

    def run(self, seconds: float, files: int, jobs: int, first: int = 0) -> Report:
        """Try files from ``first`` on, until the time or their number is used up."""
        report = Report()
        deadline = time.monotonic() + seconds
        end = first + files
        running: dict[int, _Worker] = {}
        following = first
        waiting: list[tuple[int, int]] = []  # what a process that died has left
        while True:
            while len(running) < jobs and time.monotonic() < deadline:
                if waiting:
                    start, stop = waiting.pop()
                elif following < end:
                    start, stop = following, min(end, following + _BATCH)
                    following = stop
                else:
                    break
                worker = _Worker(self, start, stop, deadline)
                running[worker.pid] = worker
            if not running:
                return report
            pid, status = os.wait()
            worker = running.pop(pid)
            known = set(report.faults)
            left = worker.collect(report, status)
            for number in sorted(report.faults.keys() - known):
                what = report.faults[number]
                print(f"{self.keep(number, what)}: {what.strip().splitlines()[-1]}", flush=True)
            print(f"{report.files} files, {len(report.faults)} faults", flush=True)
            if left is not None and left[0] < left[1]:
                waiting.append(left)

    def keep(self, number: int, what: str) -> Path:
        """Store a file that is at fault, and what is wrong with it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = _write(self.folder, f"{self.seed}-{number}", self.files(number))
        path.with_suffix(".txt").write_text(what, errors="backslashreplace")
        return path


def _write(folder: Path, name: str, parts: list[bytes]) -> Path:
    """A model in a folder of its own: its one file, or the first of several."""
    folder = folder / name
    folder.mkdir(exist_ok=True)
    names = ["model.gguf"]
    if len(parts) > 1:
        names = [f"model-{n + 1:05d}-of-{len(parts):05d}.gguf" for n in range(len(parts))]
    for part, data in zip(names, parts, strict=True):
        (folder / part).write_bytes(data)
    return folder / names[0]


class _Worker:
    """A process that tries the files from ``start`` to ``stop``."""

    def __init__(self, fuzzer: Fuzzer, start: int, stop: int, deadline: float) -> None:
        self._fuzzer, self._start, self._stop = fuzzer, start, stop
        self._place = mmap.mmap(-1, _PAGE)  # shared: the number being tried, and the step
        self._put(start, "begin")
        self._results = fuzzer._work / f"{start}.json"
        self._errors = fuzzer._work / f"{start}.stderr"
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(deadline)

    def _put(self, number: int, step: str) -> None:
        self._place[:40] = struct.pack("<q32s", number, step.encode())

    def _child(self, deadline: float) -> None:
        status = 1
        try:
            errors = os.open(self._errors, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(errors, 2)
            os.dup2(errors, 1)
            faulthandler.enable()
            faulthandler.register(signal.SIGXCPU, chain=True)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            with self._results.open("w") as results:
                self._try_all(deadline, lambda result: print(json.dumps(result), file=results))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _try_all(self, deadline: float, tell: Callable[[dict], None]) -> None:
        for number in range(self._start, self._stop):
            if time.monotonic() > deadline:
                self._put(self._stop, "end")
                return
            self._put(number, "make")
            parts = self._fuzzer.files(number)
            path = _write(self._fuzzer._work, str(self._start), parts)
            tell({"number": number} | self.attempt(path, number, sum(map(len, parts))))
            for part in path.parent.iterdir():
                part.unlink()
        self._put(self._stop, "end")

    def attempt(self, path: Path, number: int, size: int) -> dict:
        source = random.Random(number)
        begin = time.process_time()
        before = watch(size)
        result: dict = {"fault": None, "outcome": {}}
        try:
            result["outcome"] = check(path, source, lambda step: self._put(number, step))
        except Exception:
            result["fault"] = traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        result["seconds"] = time.process_time() - begin
        result["memory"] = max(0, _peak() - before - size)
        return result

    def collect(self, report: Report, status: int) -> tuple[int, int] | None:
        """Add what was found to ``report``; the files that are left to try."""
        number, step = struct.unpack("<q32s", self._place[:40])
        for line in self._results.read_text().splitlines() if self._results.exists() else ():
            if line.endswith("}"):
                _add(report, json.loads(line))
        ended = status == 0
        if not ended:
            report.files += 1
            how = f"waited for {WAITED} s, or the process ended"
            if os.WIFSIGNALED(status):
                how = f"signal {signal.Signals(os.WTERMSIG(status)).name}"
                if os.WTERMSIG(status) == signal.SIGXCPU:
                    how = f"more than {SECONDS} s"
            errors = self._errors.read_text(errors="replace")[-8000:]
            name = step.rstrip(b"\0").decode()
            report.faults[number] = f"{name}: {how}\n{errors}"
        for path in (self._results, self._errors):
            path.unlink(missing_ok=True)
        return None if ended else (number + 1, self._stop)


def watch(size: int) -> int:
    """From here on time and memory are bounded; the bytes that are resident now."""
    Path("/proc/self/clear_refs").write_text("5")
    pages = [int(pages) for pages in Path("/proc/self/statm").read_text().split()]
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages[0] * _PAGE + size + MEMORY, hard))
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + SECONDS, hard))
    faulthandler.dump_traceback_later(WAITED, exit=True)
    return pages[1] * _PAGE


def _peak() -> int:
    """The most bytes that were resident since :func:`watch`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) << 10
    return 0


def _add(report: Report, result: dict) -> None:
    report.files += 1
    number = result["number"]
    if result["fault"]:
        report.faults[number] = result["fault"]
    elif not any(result["outcome"].values()):
        report.whole += 1
    report.refused.update(step for step, error in result["outcome"].items() if error)
    report.slowest = max(report.slowest, (result["seconds"], number))
    report.largest = max(report.largest, (result["memory"], number))
