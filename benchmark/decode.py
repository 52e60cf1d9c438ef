"""Decoding blocks: ours, gguf-py's, and ggml's C code.

Billions of weights per second of CPU time, so that other processes of a busy machine do not count.
The contenders of a type take turns, in a new order each round; medians.  Two threads are measured
in wall-clock time, in their fastest rounds, when both cores were free.  Inputs are the blocks of
test/data/golden.npz, repeated; outputs are overwritten again and again.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import _ggml
import numpy as np
import torch
from gguf import quants

from ascend_gguf import dequantize
from ascend_gguf.ggml_types import BLOCK_TYPES, BlockType

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden.npz"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="decode", description=__doc__.splitlines()[0])
    parser.add_argument("--types", help="comma-separated; all by default")
    parser.add_argument("--weights", type=int, default=1 << 24, help="in a tensor (%(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="for each contender (%(default)s)")
    parser.add_argument("--no-ggml", action="store_true", help="do not build ggml's C code")
    options = parser.parse_args(arguments)

    builds = {} if options.no_ggml else _builds()
    with np.load(GOLDEN) as file:
        golden = {name.split(".")[0]: file[name] for name in file if name.endswith(".blocks")}
    names = options.types.split(",") if options.types else golden
    kinds = [kind for kind in BLOCK_TYPES.values() if kind.name in names and kind.name in golden]

    print(f"{options.weights / 2**20:g} Mi weights; ggml's C code to float32, by one thread.\n")
    columns = ["gguf-py", *(f"ggml {build}" for build in builds), "f32", "bf16"]
    ratios = {"f32 : gguf-py": ("f32", "gguf-py")}
    for build in builds:
        ratios |= {f"{dtype} : {build}": (dtype, f"ggml {build}") for dtype in ("f32", "bf16")}
    gains = {f"{dtype}, 2 threads : 1": (f"{dtype}, 2 threads", dtype) for dtype in ("f32", "bf16")}
    print("| " + " | ".join(["type", *columns, *ratios, *gains]) + " |")
    print("| ---" + " | ---:" * (len(columns) + len(ratios) + len(gains)) + " |")
    for kind in kinds:
        blocks = _repeated(golden[kind.name], kind, options.weights)
        times = _times(_contenders(kind, blocks, builds), options.rounds)
        medians = {name: np.median([cpu for _, cpu in rounds]) for name, rounds in times.items()}
        cells = [
            f"{options.weights / medians[c] / 1e9:.2f}" if c in medians else "" for c in columns
        ]
        for ours, other in ratios.values():
            cells.append(f"{medians[other] / medians[ours]:.1f}" if other in medians else "")
        for two, one in gains.values():
            cells.append(f"{min(times[one])[0] / min(times[two])[0]:.2f}")
        print("| " + " | ".join([kind.name, *cells]) + " |", flush=True)
    print(f"\n{_copying(4 * options.weights, options.rounds)}\n{_compiling()}\n")


def _builds() -> dict[str, _ggml.Ggml]:
    try:
        return {build: _ggml.Ggml(build) for build in _ggml.FLAGS}
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ggml's C code cannot be built, its columns are left out: {error}", file=sys.stderr)
        return {}


def _repeated(blocks: np.ndarray, kind: BlockType, weights: int) -> np.ndarray:
    """uint8 ``[rows, bytes of 4096 weights]``."""
    nbytes = kind.row_bytes(weights)
    tiled = np.resize(
        blocks[4:].reshape(-1, kind.type_size), (nbytes // kind.type_size, kind.type_size)
    )
    return tiled.reshape(-1, kind.row_bytes(4096))


def _contenders(
    kind: BlockType, blocks: np.ndarray, builds: dict[str, _ggml.Ggml]
) -> dict[str, tuple[Callable[[], object], float]]:
    """What to time, and the share of the weights it decodes."""
    shape = (blocks.shape[0], 4096)
    f32, bf16 = torch.empty(shape), torch.empty(shape, dtype=torch.bfloat16)
    f32.zero_(), bf16.zero_()
    contenders = {}
    if kind.name != "Q1_0":  # gguf-py has no decoder
        some = blocks[: max(1, len(blocks) // 16)]
        contenders["gguf-py"] = (
            lambda: quants.dequantize(some, kind.ggml_type),
            len(some) / len(blocks),
        )
    for build, library in builds.items():
        if decode := library.decoder(kind.name):
            call = lambda decode=decode: decode(blocks.ctypes.data, f32.data_ptr(), f32.numel())  # noqa: E731
            contenders[f"ggml {build}"] = call, 1
    for name, out in (("f32", f32), ("bf16", bf16)):
        for threads in (1, 2):
            call = lambda out=out, threads=threads: dequantize(  # noqa: E731
                blocks, kind.ggml_type, out=out, threads=threads
            )
            contenders[name if threads == 1 else f"{name}, 2 threads"] = call, 1
    return contenders


def _copying(nbytes: int, rounds: int) -> str:
    """Memory bandwidth with one thread and with two."""
    source = torch.ones(nbytes, dtype=torch.uint8)
    target, best = torch.zeros_like(source), {1: float("inf"), 2: float("inf")}
    all_threads = torch.get_num_threads()
    for _ in range(rounds):
        for threads in best:
            torch.set_num_threads(threads)
            start = time.perf_counter()
            target.copy_(source)
            best[threads] = min(best[threads], time.perf_counter() - start)
    torch.set_num_threads(all_threads)
    return (
        f"Copying {nbytes / 2**20:g} MiB: {nbytes / best[1] / 1e9:.1f} GB/s by one thread; "
        f"2 threads : 1 is {best[1] / best[2]:.2f}."
    )


_COMPILE = """
import time
import torch
from ascend_gguf.decoders.dequantize import OUTPUT_DTYPES
from ascend_gguf.ggml_types import BLOCK_TYPES
start = time.perf_counter()
from ascend_gguf.decoders.rows import kernel
kinds = [kind for kind in BLOCK_TYPES.values() if kind.decoder is not None]
times = [time.perf_counter()]
for kind in kinds:
    for dtype in OUTPUT_DTYPES:
        kernel(kind, dtype)
        times.append(time.perf_counter())
slowest = max(after - before for before, after in zip(times, times[1:]))
print(
    f"In a new process, importing the compiler takes {times[0] - start:.2f} s, all {len(kinds)} "
    f"types to {len(OUTPUT_DTYPES)} dtypes {times[-1] - times[0]:.2f} s, the slowest "
    f"{1000 * slowest:.0f} ms."
)
"""


def _compiling() -> str:
    """What first use costs."""
    command = [sys.executable, "-c", _COMPILE]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _times(
    contenders: dict[str, tuple[Callable[[], object], float]], rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds for all weights, of each contender and round: of the clock, of the processor."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    order = list(contenders)
    for round_ in range(rounds):
        random.Random(round_).shuffle(order)  # what ran before leaves its traces in the caches
        for name in order:
            call, part = contenders[name]
            wall, processor = time.perf_counter(), time.thread_time()
            call()
            wall, processor = time.perf_counter() - wall, time.thread_time() - processor
            times[name].append((wall / part, processor / part))
    return times
