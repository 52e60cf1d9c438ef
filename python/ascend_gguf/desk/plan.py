"""``ascend-gguf plan``: which share of a model a device holds, and what is left for requests."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch

from ascend_gguf.desk import text
from ascend_gguf.desk.chips import Chip
from ascend_gguf.desk.weights import Ranks, cache_bytes, holdings, modules_of
from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.choice import choose
from ascend_gguf.ranks import Shares, uneven
from ascend_gguf.reader import GGUFFile
from ascend_gguf.servable import check_model, refuse_float16, refuse_on_npu

_GB = 10**9
#: Lengths of requests that are counted, besides the model's context.
_LENGTHS = (4096, 32768)


def plan(
    file: GGUFFile, chip: Chip, count: int, memory: float, fraction: float, dtype: torch.dtype
) -> dict[str, Any]:
    """The memory of a rank for every way to spread the model over up to ``count`` devices.

    Args:
        memory: of a device, in GB.
        fraction: of it that weights and KV cache may take (``--mem-fraction-static``).

    Raises:
        GGUFError: the model is not served on this chip.
    """
    config = check_model(file.path)
    refuse_on_npu(file.path, config)
    if dtype == torch.float16:
        refuse_float16(file)
    modules = modules_of(file, config)
    budget = memory * fraction * _GB
    rows = []
    for ranks in _ways(file, config, count):
        cell = cache_bytes(config, ranks, dtype)
        row: dict[str, Any] = {**ranks._asdict(), "cache_bytes_a_token": cell}
        for weights in ("packed", "dense"):
            choice = choose({"weights": "auto" if weights == "packed" else "dense"}, file.path)
            held = holdings(modules, config, chip, ranks, dtype, choice)
            nbytes = sum(one.nbytes for one in held)
            by_layout: dict[str, int] = {}
            for one in held:
                by_layout[one.layout] = by_layout.get(one.layout, 0) + one.nbytes
            tokens = max(0, int((budget - nbytes) // cell)) if cell else 0
            row[weights] = {"bytes": nbytes, "layouts": by_layout, "cache_tokens": tokens}
        rows.append(row)
    context = config.max_position_embeddings
    best = _recommended(rows, context)
    return {
        "chip": chip.name,
        "memory_gb": memory,
        "mem_fraction_static": fraction,
        "source": chip.source,
        "dtype": str(dtype).removeprefix("torch."),
        "context": context,
        "file_bytes": sum(tensor.nbytes for tensor in file.tensors.values()),
        "ranks": rows,
        "recommended": best,
    }


def _ways(file: GGUFFile, config: Any, count: int) -> list[Ranks]:
    """Tensor parallelism over 1, 2, 4, ... and ``count`` devices, with stages and with experts."""
    sizes = sorted({count, *(1 << i for i in range(count.bit_length()) if 1 << i <= count)})
    is_latent = bool(getattr(config, "kv_lora_rank", None))
    heads = config.num_attention_heads, None if is_latent else config.num_key_value_heads
    has_experts = any(".ffn_down_exps." in name for name in file.tensors)

    def even(tp: int, ep: int) -> bool:
        return not any(uneven(file.path, config, Shares(tp, ep, 1, tp), heads))

    ways = []
    for devices in sizes:
        for pp in (size for size in sizes if devices % size == 0):
            tp = devices // pp
            if pp > config.num_hidden_layers or pp > 1 and devices < count:
                continue
            ways += [Ranks(tp, 1, pp)] if even(tp, 1) else []
            if has_experts and tp > 1 and pp == 1 and even(tp, tp):
                ways.append(Ranks(tp, tp, pp))
    return ways


def _recommended(rows: list[dict[str, Any]], context: int) -> dict[str, Any] | None:
    """The fewest devices that have room for one request of the whole context, or the most room.

    Without stages and expert parallelism where it can be done without.
    """
    fitting = [row for row in rows if row["packed"]["cache_tokens"] > 0]
    plain = [row for row in fitting if row["ep"] == 1]
    plain = [row for row in plain if row["pp"] == 1] or plain
    whole = [row for row in plain if row["packed"]["cache_tokens"] >= context]
    if whole:
        return min(whole, key=lambda row: row["tp"] * row["pp"])
    return max(plain, key=lambda row: row["packed"]["cache_tokens"], default=None)


def command(found: dict[str, Any], model: str) -> str | None:
    """The command line of the recommended way; None if there is none."""
    row = found["recommended"]
    if row is None:
        return None
    parts = ["python", "-m", "sglang.launch_server", "--model-path", shlex.quote(model)]
    parts += ["--quantization", "gguf", "--device", "npu", "--attention-backend", "ascend"]
    parts += [f"--{name}-size {row[name]}" for name in ("tp", "pp") if row[name] > 1]
    parts += ["--dtype", found["dtype"]]
    parts += ["--mem-fraction-static", f"{found['mem_fraction_static']:g}"]
    tokens = row["packed"]["cache_tokens"]
    if tokens < found["context"]:
        parts += ["--context-length", str(tokens)]
    return " ".join(parts)


def lines(found: dict[str, Any], model: str) -> str:
    """What :func:`plan` found, for a terminal."""
    budget = found["memory_gb"] * found["mem_fraction_static"] * _GB
    lengths = [*(n for n in _LENGTHS if n < found["context"]), found["context"]]
    head = ["tp", "ep", "pp", "weights", "a rank", "KV cache", "tokens"]
    head += [f"of {length:,}" for length in lengths]
    body = []
    for row in found["ranks"]:
        for weights in ("packed", "dense"):
            held = row[weights]
            left, tokens = budget - held["bytes"], held["cache_tokens"]
            room = [text.size(left), f"{tokens:,}"] if left > 0 else ["does not fit", ""]
            counts = [f"{tokens // length:,}" if left > 0 else "" for length in lengths]
            ways = [row["tp"], row["ep"], row["pp"]] if weights == "packed" else [""] * 3
            body.append([*ways, weights, text.size(held["bytes"]), *room, *counts])
    parts = [
        f"{found['chip']}: {found['memory_gb']:g} GB a device, of which "
        f"{found['mem_fraction_static']:.0%} for weights and KV cache; {found['dtype']}\n"
        f"(memory: {found['source']})",
        text.table(head, body, (0, 1, 2, *range(4, len(head)))),
    ]
    notes = []
    if any(row["pp"] > 1 for row in found["ranks"]):
        notes.append("pp above 1: not every model has stages, see docs/models.md")
    line = command(found, model)
    if line is None:
        notes.append("It does not fit: take more devices (--count) or a smaller quantization.")
    parts += ["\n".join(notes)] if notes else []
    return "\n\n".join([*parts, line] if line else parts)


def draw(found: dict[str, Any], path: Path) -> None:
    """A picture of the memory of a rank, one bar for each way.

    Raises:
        GGUFError: matplotlib is missing, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise GGUFError(
            "--plot needs matplotlib", hint="pip install 'ascend-gguf[plot]', or leave it out."
        ) from None
    rows = found["ranks"]
    bars = [(row, weights) for row in rows for weights in ("packed", "dense")]
    names = [
        " ".join(f"{k} {row[k]}" for k in ("tp", "ep", "pp") if k == "tp" or row[k] > 1) + f", {w}"
        for row, w in bars
    ]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(bars)), layout="constrained")
    axes = figure.add_subplot()
    start = [0.0] * len(bars)
    budget = found["memory_gb"] * found["mem_fraction_static"]
    layouts = dict.fromkeys(layout for row, w in bars for layout in row[w]["layouts"])
    for layout in layouts:
        widths = [row[w]["layouts"].get(layout, 0) / _GB for row, w in bars]
        axes.barh(names, widths, left=start, label=layout)
        start = [a + b for a, b in zip(start, widths, strict=True)]
    room = [max(0.0, budget - used) for used in start]
    axes.barh(names, room, left=start, label="KV cache", color="0.85")
    axes.axvline(found["memory_gb"], color="0.3", linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel(f"GB on each {found['chip']} (dashed: all of its memory)")
    axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # a name whose ending is no format
        raise GGUFError(f"the picture cannot be written: {error}", file=path) from error
