"""Loading a model: through the patch, by the engine alone, and what writing the numbers takes.

The file lies in the page cache.  Numbers are bfloat16, on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="loading", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=31, help="of the dense model (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="for each contender (%(default)s)")
    parser.add_argument("--folder", help="for the files, which are deleted")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        _dense(Path(folder) / "dense.gguf", options.layers, options.rounds)
        _slices(Path(folder) / "experts.gguf")


def _dense(path: Path, layers: int, rounds: int) -> None:
    from _models import Spec, one_layer_model, write_blocks

    spec = Spec(
        types={r"attn_v|ffn_down|^output\.": "Q6_K"},
        layers=layers, hidden=4096, heads=32, kv_heads=8, head_size=128, ffn=12288, vocab=1 << 15,
    )  # fmt: skip
    write_blocks(path, spec)
    with one_layer_model(path) as (model, names):
        weights = sum(_numel(shape) for shape in spec.shapes().values())
        layer = [p.data for p in model.model.layers[0].parameters() if p.numel()]
        rest = [model.model.embed_tokens.weight.data, model.lm_head.weight.data]
        dense = layer * layers + rest
        copies = {p.data_ptr(): torch.ones_like(p) for p in layer + rest}
        contenders = {
            "memcpy of the numbers": lambda: [p.copy_(copies[p.data_ptr()]) for p in dense],
            "ascend-gguf": lambda: _load(model, path, names),
        }
        times = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, call in contenders.items():
                times[name].append(_seconds(call))
    engine, part = _engine(path, {name: hf[0] for name, hf in names.items()})
    size = path.stat().st_size
    print(
        f"A dense Q4_K_M model of {size / 1e9:.2f} GB, {len(spec.shapes())} tensors, "
        f"{weights / 1e9:.2f} G weights, {2 * weights / 1e9:.1f} GB of numbers; all {layers} layers "
        f"are loaded into one.\n"
    )
    print("| | seconds | of the processor | GB/s of the file | to memcpy | to the engine |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    rows = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)]
        for name, rounds in times.items()
    }
    copying = next(iter(rows.values()))[0]
    rows[f"the engine and gguf-py (from {part:.1%} of the file)"] = [s / part for s in engine]
    for name, (wall, processor) in rows.items():
        print(
            f"| {name} | {wall:.2f} | {processor:.2f} | {size / 1e9 / wall:.2f} "
            f"| {wall / copying:.2f} | {engine[0] / part / wall:.1f} |"
        )
    print()


def _numel(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of the clock and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def _load(model: torch.nn.Module, path: Path, names: dict) -> None:
    from ascend_gguf.srt.model_loader import loader

    weights = loader._weights(model, str(path), names)
    loader._load_weights(model, str(path), weights)


def _engine(path: Path, names: dict, most: int = 300_000_000) -> tuple[tuple[float, float], float]:
    """Seconds for a part of a file, and how much of it that is."""
    from gguf import dequantize
    from sglang.srt.model_loader.weight_utils import gguf_quant_weights_iterator

    types, done = {}, 0

    def load() -> None:
        nonlocal done
        for name, data in gguf_quant_weights_iterator(str(path), names):
            if name.endswith("qweight_type"):
                types[name.removesuffix("_type")] = int(data)
                continue
            # As ggml_dequantize_ascend does.
            if name in types:
                torch.from_numpy(dequantize(data.numpy(), types[name])).to(torch.bfloat16)
            done += data.nbytes
            if done > most:
                return

    return _seconds(load), done / path.stat().st_size


def _slices(path: Path) -> None:
    from _models import Spec, one_layer_model, write_blocks

    spec = Spec(
        arch="qwen3moe", default="Q8_0", layers=334, hidden=64, heads=2, kv_heads=1, head_size=32,
        experts=60, expert_ffn=32,
    )  # fmt: skip
    write_blocks(path, spec)
    slices = 3 * spec.experts * spec.layers
    with one_layer_model(path) as (model, names):
        wall, processor = min(_seconds(lambda: _load(model, path, names)) for _ in range(3))
    print(
        f"{3 * spec.layers} expert tensors, {slices} slices of {spec.hidden * spec.expert_ffn} "
        f"weights: {wall * 1e6 / slices:.0f} microseconds a slice "
        f"({processor * 1e6 / slices:.0f} of the processor).\n"
    )
