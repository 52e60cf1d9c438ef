"""``ascend-gguf plan``: which share of a model a device holds, and what is left for requests."""

from __future__ import annotations

import os
import shlex
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import Any

from ascend_gguf.desk import text
from ascend_gguf.desk.cache import cache_bytes
from ascend_gguf.desk.chips import Chip, chip_named
from ascend_gguf.desk.source import opened
from ascend_gguf.desk.weights import Ranks, holdings, modules_of
from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.choice import choose
from ascend_gguf.reader import GGUFFile
from ascend_gguf.servable import describe_model, reach, refuse_device

_GB = 10**9
#: Bytes of states for one of the KV cache (``--mamba-full-memory-ratio``), one of them is padding.
_STATES = 0.9
#: Tokens of a page of the KV cache on an NPU (``--page-size``).
_PAGE = 128
#: Lengths of requests that are counted, besides the model's context.
_LENGTHS = (4096, 32768)


def run(asked: Namespace) -> tuple[dict[str, Any], str, bool]:
    """The command: what was found, as text too, and whether the model fits."""
    chip = chip_named(asked.chip)
    memory = chip.memory or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GB
    # A 310P has no bfloat16.
    dtype = asked.dtype or ("float16" if chip.name.startswith("310P") else "bfloat16")
    with opened(asked.model, asked.revision) as file:
        found = plan(
            file, chip, asked.count, asked.memory or memory, asked.mem_fraction_static, dtype
        )
    found["command"] = command(found, asked.model)
    if asked.plot:
        draw(found, asked.plot)
    return found, lines(found), found["command"] is not None


def plan(
    file: GGUFFile, chip: Chip, count: int, memory: float, fraction: float, dtype: str
) -> dict[str, Any]:
    """The memory of a rank for every way to spread the model over up to ``count`` devices.

    Args:
        memory: of a device, in GB.
        fraction: of it that weights and KV cache may take (``--mem-fraction-static``).

    Raises:
        GGUFError: the model is not served on this chip.
    """
    config = describe_model(file.path)
    refuse_device(file, config, chip.is_npu, dtype)
    modules = modules_of(file, config)
    budget = memory * fraction * _GB
    rows = []
    for ranks in _ways(file, config, count):
        token, state = cache_bytes(config, ranks, dtype, chip.is_npu)
        row: dict[str, Any] = {**ranks._asdict(), "cache_bytes_a_token": token}
        row["state_bytes_a_request"] = state
        for weights in ("packed", "dense"):
            choice = choose({"weights": "auto" if weights == "packed" else "dense"}, file.path)
            held: Counter[str] = Counter()
            for one in holdings(modules, config, chip, ranks, dtype, choice):
                held[one.layout] += one.nbytes
            states, tokens = _room(budget - held.total(), token, state, chip)
            row[weights] = {"bytes": held.total(), "layouts": held}
            row[weights] |= {"cache_tokens": tokens, "states": states}
        rows.append(row)
    context = min(config.max_position_embeddings, reach(config) or 1 << 62)
    best = _recommended(rows, context)
    return {
        "chip": chip.name,
        "memory_gb": memory,
        "mem_fraction_static": fraction,
        "source": chip.source,
        "dtype": dtype,
        "context": context,
        "file_bytes": sum(tensor.nbytes for tensor in file.tensors.values()),
        "ranks": rows,
        "recommended": best,
    }


def _room(left: float, token: int, state: int, chip: Chip) -> tuple[int, int]:
    """How many states and tokens fit into bytes, as the engine's ``KVCacheConfigurator`` counts."""
    states = 0
    if state:
        states = max(0, int(left * _STATES / (1 + _STATES) // state) - 1)
        left = left - (states + 1) * state if states else 0
    page = _PAGE if chip.is_npu else 1
    return states, max(0, int(left // token)) // page * page if token else 0


def _ways(file: GGUFFile, config: Any, count: int) -> list[Ranks]:
    """Tensor parallelism over 1, 2, 4, ... and ``count`` devices, with stages and with experts."""
    sizes = sorted({count, *(1 << i for i in range(count.bit_length()) if 1 << i <= count)})
    has_experts = any(".ffn_down_exps." in name for name in file.tensors)
    ways = []
    for devices in sizes:
        for pp in (size for size in sizes if devices % size == 0):
            tp = devices // pp
            if pp > config.num_hidden_layers or pp > 1 and devices < count:
                continue
            ways.append(Ranks(tp, 1, pp))
            if has_experts and tp > 1 and pp == 1:
                ways.append(Ranks(tp, tp, pp))
    return [ranks for ranks in ways if not any(ranks.uneven(file, config))]


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
    parts += ["--quantization", "gguf"]
    if found["chip"] == "cpu":
        parts = ["SGLANG_USE_CPU_ENGINE=1", *parts, "--device cpu --attention-backend torch_native"]
    else:
        parts += ["--device npu --attention-backend ascend"]
    parts += [f"--{name}-size {row[name]}" for name in ("tp", "pp") if row[name] > 1]
    parts += ["--dtype", found["dtype"]]
    parts += ["--mem-fraction-static", f"{found['mem_fraction_static']:g}"]
    tokens = row["packed"]["cache_tokens"]
    if tokens < found["context"]:
        parts += ["--context-length", str(tokens)]
    return " ".join(parts)


def lines(found: dict[str, Any]) -> str:
    """What :func:`plan` found, for a terminal."""
    budget = found["memory_gb"] * found["mem_fraction_static"] * _GB
    lengths = [*(n for n in _LENGTHS if n < found["context"]), found["context"]]
    has_states = any(row["state_bytes_a_request"] for row in found["ranks"])
    head = ["tp", "ep", "pp", "weights", "a rank", "left", *["states"] * has_states, "tokens"]
    head += [f"of {length:,}" for length in lengths]
    body = []
    for row in found["ranks"]:
        for weights in ("packed", "dense"):
            held = row[weights]
            left, tokens = budget - held["bytes"], held["cache_tokens"]
            room = ["does not fit", *[""] * (len(head) - 6)]
            if left > 0:
                counts = [held["states"]] * has_states + [tokens, *(tokens // n for n in lengths)]
                room = [text.size(left), *(f"{n:,}" for n in counts)]
            ways = [row["tp"], row["ep"], row["pp"]] if weights == "packed" else [""] * 3
            body.append([*ways, weights, text.size(held["bytes"]), *room])
    parts = [
        f"{found['chip']}: {found['memory_gb']:.4g} GB a device, of which "
        f"{found['mem_fraction_static']:.0%} for weights and KV cache; {found['dtype']}\n"
        f"(memory: {found['source']})",
        text.table(head, body, (0, 1, 2, *range(4, len(head)))),
    ]
    notes = []
    if has_states:
        notes.append(
            "states: this model keeps one of a fixed size for each request, beside its tokens; the "
            "engine takes about three of them for each request that runs"
        )
    if any(row["pp"] > 1 for row in found["ranks"]):
        notes.append("pp above 1: not every model has stages, see docs/models.md")
    if found["command"] is None:
        notes.append("It does not fit: take more devices (--count) or a smaller quantization.")
    parts += ["\n".join(notes)] if notes else []
    return "\n\n".join([*parts, found["command"]] if found["command"] else parts)


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
    budget = found["memory_gb"] * found["mem_fraction_static"]
    parts = {
        layout: [row[w]["layouts"].get(layout, 0) / _GB for row, w in bars]
        for layout in dict.fromkeys(layout for row, w in bars for layout in row[w]["layouts"])
    }
    states = [row[w]["states"] * row["state_bytes_a_request"] / _GB for row, w in bars]
    parts |= {"states": states} if any(states) else {}
    used = [sum(held) for held in zip(*parts.values(), strict=True)]
    parts["KV cache"] = [max(0.0, budget - held) for held in used]
    greys = {"states": "0.7", "KV cache": "0.85"}
    start = [0.0] * len(bars)
    for label, widths in parts.items():
        axes.barh(names, widths, left=start, label=label, color=greys.get(label))
        start = [a + b for a, b in zip(start, widths, strict=True)]
    axes.axvline(found["memory_gb"], color="0.3", linestyle="--")
    axes.invert_yaxis()
    axes.set_xlabel(f"GB on each {found['chip']} (dashed: all of its memory)")
    figure.legend(loc="outside right upper", fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:  # a name whose ending is no format
        raise GGUFError(f"the picture cannot be written: {error}", file=path) from error
