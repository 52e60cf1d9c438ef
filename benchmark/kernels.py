"""Quantized matmul on the CPU, against torch's with the same weights in bfloat16.

CPU time of one thread for one matrix and vectors in bfloat16; the contenders take turns; medians.
The ratio is torch's time to ours: above 1, ours is faster.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ascend_gguf import BlockTensor
from ascend_gguf.cpu.blocks import Blocks
from ascend_gguf.cpu.linear import BlocksLinear
from ascend_gguf.ggml_types import BLOCK_TYPES, BlockType
from ascend_gguf.weights.layout import Piece, Weight

GOLDEN = Path(__file__).parents[1] / "test" / "data" / "golden.npz"


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="kernels", description=__doc__.splitlines()[0])
    parser.add_argument("--types", help="comma-separated; all by default")
    parser.add_argument("--vectors", default="1,4,16,512", help="comma-separated (%(default)s)")
    parser.add_argument("--shape", default="12288,2048", help="rows, columns (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="for each contender (%(default)s)")
    options = parser.parse_args(arguments)
    rows, cols = map(int, options.shape.split(","))
    counts = [int(count) for count in options.vectors.split(",")]
    torch.set_num_threads(1)
    with np.load(GOLDEN) as file:
        golden = {name.split(".")[0]: file[name] for name in file if name.endswith(".blocks")}
    names = options.types.split(",") if options.types else golden
    kinds = [kind for kind in BLOCK_TYPES.values() if kind.name in names and kind.is_quantized]

    print(f"{rows} x {cols}; ms, and the ratio to torch.\n")
    cells = [cell for n in counts for cell in (f"{n}: ms", "ratio")]
    print("| type | " + " | ".join(cells) + " |\n| --- |" + " ---: |" * len(cells))
    for kind in kinds:
        line = []
        for count in counts:
            ours, theirs = _times(kind, golden[kind.name], rows, cols, count, options.rounds)
            line += [f"{ours * 1e3:.2f}", f"{theirs / ours:.2f}"]
        print(f"| {kind.name} | " + " | ".join(line) + " |", flush=True)
    print()


def _times(
    kind: BlockType, blocks: np.ndarray, rows: int, cols: int, count: int, rounds: int
) -> tuple[float, float]:
    """Seconds of ours and of torch."""
    nbytes = kind.row_bytes(cols)
    # The first rows hold extreme values, for tests of decoders.
    tiled = np.resize(blocks[4:].reshape(-1), (rows, nbytes))
    matrix = BlockTensor(torch.from_numpy(tiled), kind.ggml_type)
    pieces = [Piece(0, 0, 0, matrix)]
    weight = Weight(None, rows, cols, torch.bfloat16, pieces)
    packed = Blocks.allocate(weight)
    packed.put(pieces[0])
    dense = torch.empty(rows, cols, dtype=torch.bfloat16).copy_(matrix)
    x, kernel = torch.randn(count, cols).bfloat16(), BlocksLinear()
    contenders: list[Callable[[], object]] = [
        lambda: kernel.linear(x, packed),
        lambda: F.linear(x, dense),
    ]
    times = ([], [])
    for round_ in range(rounds + 1):
        for i in random.Random(round_).sample(range(2), 2):
            start = time.thread_time()
            contenders[i]()
            times[i].append(time.thread_time() - start)
    ours, theirs = (float(np.median(t[1:])) for t in times)  # the first compiles
    return ours, theirs
