"""Converting blocks to the layouts of an Ascend NPU, and decoding them.

Billions of weights per second of CPU time, to bfloat16 or with bfloat16 scales; one thread,
medians of rounds in which all take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from gguf import GGMLQuantizationType

from ascend_gguf import BlockTensor
from ascend_gguf.npu.experts import GroupedInt4, GroupedNibblePlanes, GroupedWidePlanes
from ascend_gguf.npu.int4 import Int4, Int4Rows
from ascend_gguf.npu.int8 import Int8, RequantizedInt8
from ascend_gguf.npu.nibble_planes import NibblePlanes, PlanesRows, WidePlanes
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout, Piece, Weight, allocated

sys.path.append(str(Path(__file__).parents[1] / "test"))
from random_model import random_blocks  # noqa: E402

EXPERTS = (GroupedInt4, GroupedWidePlanes, GroupedNibblePlanes)
LAYOUTS = (
    Dense,
    Int4,
    Int8,
    RequantizedInt8,
    NibblePlanes,
    WidePlanes,
    Int4Rows,
    PlanesRows,
    *EXPERTS,
)
TYPES = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS", "IQ3_S", "Q3_K", "Q2_K", "MXFP4")
ROWS, COLS = 4096, 2048


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="layouts", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--types", nargs="+", default=TYPES, help="quantization types (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=9, help="for each layout (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| type | " + " | ".join(layout.name for layout in LAYOUTS) + " |")
    print("| --- |" + " ---: |" * len(LAYOUTS))
    for name in options.types:
        speeds = _speeds(name, options.rounds)
        cells = (f"{speeds[layout]:.2f}" if layout in speeds else "" for layout in LAYOUTS)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _speeds(name: str, rounds: int) -> dict[type[Layout], float]:
    blocks, _ = random_blocks(np.random.default_rng(0), name, (ROWS, COLS))
    piece = Piece(0, 0, 0, BlockTensor(torch.from_numpy(blocks), GGMLQuantizationType[name]))
    layouts = {}
    for layout in LAYOUTS:
        experts = 1 if layout in EXPERTS else None
        weight = Weight(experts, ROWS, COLS, torch.bfloat16, (piece,))
        if layout.unsupported_reason(weight) is None:
            layouts[layout] = allocated(weight, [layout])
            layouts[layout].put(piece)  # compiles, and touches the memory
    times: dict[type[Layout], list[float]] = {layout: [] for layout in layouts}
    for _ in range(rounds):
        for layout, target in layouts.items():
            start = time.process_time()
            target.put(piece)
            times[layout].append(time.process_time() - start)
    return {layout: ROWS * COLS / statistics.median(t) / 1e9 for layout, t in times.items()}
