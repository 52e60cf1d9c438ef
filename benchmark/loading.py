"""Loading a model: with this package, by the engine alone, and a copy of the dense weights.

The file is in the page cache.  Weights are loaded as bfloat16 on the CPU.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _models import Spec, engine_model, write_blocks

#: Name to the seconds of each round: wall-clock, CPU.
Times = dict[str, list[tuple[float, float]]]


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="loading", description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=31, help="of the dense model (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="for each contender (%(default)s)")
    parser.add_argument("--folder", help="for the files, which are deleted")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "model.gguf"
        _warm(path, options.layers, options.rounds)
        _first_touch(path, min(options.layers, 6), options.rounds)
        _slices(path)


def _dense(path: Path, layers: int) -> str:
    """Write a dense model in the Q4_K_M mix; returns its description."""
    spec = Spec(
        types={r"attn_v|ffn_down|^output\.": "Q6_K"},
        layers=layers, hidden=4096, heads=32, kv_heads=8, head_size=128, ffn=12288, vocab=1 << 15,
    )  # fmt: skip
    write_blocks(path, spec)
    weights = sum(torch.Size(shape).numel() for shape in spec.shapes().values())
    return (
        f"Q4_K_M, {path.stat().st_size / 1e9:.2f} GB, {len(spec.shapes())} tensors, "
        f"{weights / 1e9:.2f} G weights, {2 * weights / 1e9:.1f} GB as bfloat16"
    )


def _warm(path: Path, layers: int, rounds: int) -> None:
    what = _dense(path, layers)
    with engine_model(path, 1) as (model, names):
        layer = [p.data for p in model.model.layers.parameters() if p.numel()]
        rest = [model.model.embed_tokens.weight.data, model.lm_head.weight.data]
        numbers = {id(p): torch.ones_like(p) for p in layer + rest}
        times = _times(
            {
                "memcpy of the dense weights": lambda: [
                    p.copy_(numbers[id(p)]) for p in layer * layers + rest
                ],
                "ascend-gguf": lambda: _load(model, path, names),
            },
            rounds,
        )
    seconds, part = _engine(path, {name: hf[0] for name, hf in names.items()})
    times[f"the engine and gguf-py, from {part:.0%} of the file"] = [seconds]
    print(f"{what}; all layers into the memory of one.\n")
    _table(times, path)


def _first_touch(path: Path, layers: int, rounds: int) -> None:
    what = _dense(path, layers)
    with engine_model(path, layers) as (model, names):
        parameters = [p for p in model.parameters() if p.numel()]

        def forget() -> None:
            for parameter in parameters:
                parameter.data = torch.empty_like(parameter.data)

        numbers = [torch.ones_like(p.data) for p in parameters]
        times = _times(
            {
                "memcpy of the dense weights": lambda: [
                    p.data.copy_(n) for p, n in zip(parameters, numbers, strict=True)
                ],
                "ascend-gguf": lambda: _load(model, path, names),
            },
            rounds,
            forget,
        )
    print(f"{what}; into memory that is touched for the first time.\n")
    _table(times, path)


def _slices(path: Path) -> None:
    spec = Spec(
        arch="qwen3moe", default="Q8_0", layers=334, hidden=64, heads=2, kv_heads=1, head_size=32,
        experts=60, expert_ffn=32,
    )  # fmt: skip
    write_blocks(path, spec)
    slices = 3 * spec.experts * spec.layers
    with engine_model(path, 1) as (model, names):
        wall, processor = min(_seconds(lambda: _load(model, path, names)) for _ in range(3))
    print(
        f"{3 * spec.layers} tensors of experts, {slices} slices of {spec.hidden * spec.expert_ffn} "
        f"weights: {wall * 1e6 / slices:.0f} microseconds per slice, "
        f"{processor * 1e6 / slices:.0f} of CPU time.\n"
    )


def _load(model: torch.nn.Module, path: Path, names: dict[str, tuple[str, ...]]) -> None:
    from ascend_gguf.srt.model_loader import loader

    weights = loader._weights(model, str(path), names)
    loader._load_weights(model, str(path), weights)


def _engine(
    path: Path, names: dict[str, str], most: int = 250_000_000
) -> tuple[tuple[float, float], float]:
    """Seconds for a file, extrapolated from ``most`` bytes of its tensors; and their share.

    From the engine's iterator to decoded weights; its weight loaders, which copy twice more, are
    not counted.
    """
    from gguf import dequantize
    from sglang.srt.model_loader.weight_utils import gguf_quant_weights_iterator

    types: dict[str, int] = {}
    done = 0

    def load() -> None:
        nonlocal done
        for name, data in gguf_quant_weights_iterator(str(path), names):
            if name.endswith("qweight_type"):
                types[name.removesuffix("_type")] = int(data)
                continue
            if name in types:  # as its ggml_dequantize_ascend does
                torch.from_numpy(dequantize(data.numpy(), types[name])).to(torch.bfloat16)
            done += data.nbytes
            if done > most:
                return

    wall, processor = _seconds(load)
    part = done / path.stat().st_size
    return (wall / part, processor / part), part


def _times(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], None] = lambda: None,
) -> Times:
    times: Times = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            before()
            times[name].append(_seconds(call))
    return times


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Wall-clock and CPU seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def _table(times: Times, path: Path) -> None:
    """Medians; the others are compared with the first contender."""
    print("| | seconds | CPU seconds | GB/s of the file | : memcpy |")
    print("| --- | ---: | ---: | ---: | ---: |")
    medians = {
        name: [statistics.median(column) for column in zip(*rounds, strict=True)]
        for name, rounds in times.items()
    }
    copying = next(iter(medians.values()))[0]
    for name, (wall, processor) in medians.items():
        rate = path.stat().st_size / 1e9 / wall
        print(f"| {name} | {wall:.2f} | {processor:.2f} | {rate:.2f} | {wall / copying:.2f} |")
    print()
