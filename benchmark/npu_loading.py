"""Loading to a simulated NPU: packed and dense weights.

The host's work is real: reading, converting or decoding, and copying to the simulated device's
memory.  The self-check, which multiplies on the simulated device, is not counted.  The file is in
the page cache; the two take turns; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from demo import free_port, running
from serve import plan

sys.path.append(str(Path(__file__).parents[1] / "test"))
from random_model import Spec, write_blocks  # noqa: E402

#: As in llama.cpp's Q4_K_M: some matrices in a better type.
BETTER = {r"\.[02468]\.(attn_v|ffn_down)": "Q6_K", r"^output\.": "Q6_K"}
MODELS = {
    "dense": Spec(
        types=BETTER, layers=6, hidden=4096, heads=32, kv_heads=8, head_size=128, ffn=12288,
        vocab=1 << 15,
    ),
    "mixture of experts": Spec(
        arch="qwen3moe", types=BETTER, layers=6, hidden=2048, heads=32, kv_heads=4, head_size=128,
        experts=64, experts_used=8, expert_ffn=768, vocab=1 << 15,
    ),
}  # fmt: skip
WEIGHTS = ("dense", "packed")


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="npu_loading", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3, help="for each layout (%(default)s)")
    options = parser.parse_args(arguments)
    print("| Q4_K_M | GB | dense: seconds | packed: seconds | packed : dense |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, spec in MODELS.items():
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            write_blocks(folder / "model.gguf", spec)
            times: dict[str, list[float]] = {weights: [] for weights in WEIGHTS}
            for _ in range(options.rounds):
                for weights, seconds in times.items():
                    seconds.append(_load(folder / "model.gguf", weights, folder / "log"))
            dense, packed = (statistics.median(times[weights]) for weights in WEIGHTS)
            size = (folder / "model.gguf").stat().st_size / 1e9
        print(f"| {name} | {size:.2f} | {dense:.2f} | {packed:.2f} | {packed / dense:.2f} |")


def _load(model: Path, weights: str, log: Path) -> float:
    """Seconds, from the server's log."""
    port = free_port()
    command, environment = plan(
        str(model), "npu", port, True,
        [
            *("--model-loader-extra-config", json.dumps({"weights": weights})),
            *("--max-total-tokens", "1024", "--max-running-requests", "1", "--disable-cuda-graph"),
            *("--dtype", "bfloat16", "--skip-tokenizer-init", "--skip-server-warmup"),
        ],
    )  # fmt: skip
    with running(command, os.environ | environment, log) as process:
        while process.poll() is None:
            found = re.search(r"Loaded the weights in ([\d.]+) s", log.read_text())
            if found:
                return float(found[1])
            time.sleep(0.2)
    raise SystemExit(f"the server ended while loading:\n{log.read_text()[-2000:]}")
