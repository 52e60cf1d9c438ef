"""Converting blocks to the forms of an Ascend NPU, beside decoding them.

Billions of weights a second of processor time, to bfloat16 or with scales of it; one thread,
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
from ascend_gguf.npu.experts import GroupedInt4, GroupedPlanes
from ascend_gguf.npu.int4 import Int4
from ascend_gguf.npu.int8 import Int8, NearInt8
from ascend_gguf.npu.nibble_planes import Planes
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Form, Piece, Weight, allocated

sys.path.append(str(Path(__file__).parents[1] / "test"))
from random_model import random_blocks  # noqa: E402

FORMS = (Dense, Int4, Int8, NearInt8, Planes, GroupedInt4, GroupedPlanes)
TYPES = ("Q4_0", "Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS", "IQ3_S", "Q3_K", "Q2_K", "MXFP4")
ROWS, COLS = 4096, 2048


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="forms", description=__doc__.splitlines()[0])
    parser.add_argument("--types", nargs="+", default=TYPES, help="block types (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="for each form (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| type | " + " | ".join(form.name for form in FORMS) + " |")
    print("| --- |" + " ---: |" * len(FORMS))
    for name in options.types:
        speeds = _speeds(name, options.rounds)
        cells = (f"{speeds[form]:.2f}" if form in speeds else "" for form in FORMS)
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


def _speeds(name: str, rounds: int) -> dict[type[Form], float]:
    blocks, _ = random_blocks(np.random.default_rng(0), name, (ROWS, COLS))
    piece = Piece(0, 0, 0, BlockTensor(torch.from_numpy(blocks), GGMLQuantizationType[name]))
    forms = {}
    for form in FORMS:
        experts = 1 if form in (GroupedInt4, GroupedPlanes) else None
        weight = Weight(experts, ROWS, COLS, torch.bfloat16, (piece,))
        if form.obstacle(weight) is None:
            forms[form] = allocated(weight, [form])
            forms[form].put(piece)  # compiles, and touches the memory
    times: dict[type[Form], list[float]] = {form: [] for form in forms}
    for _ in range(rounds):
        for form, target in forms.items():
            start = time.process_time()
            target.put(piece)
            times[form].append(time.process_time() - start)
    return {form: ROWS * COLS / statistics.median(t) / 1e9 for form, t in times.items()}
