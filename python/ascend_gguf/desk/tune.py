"""``ascend-gguf tune``: the layouts that are the quickest on this device, for loading to obey."""

from __future__ import annotations

import gc
import math
import sys
from argparse import Namespace
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from ascend_gguf.desk import text
from ascend_gguf.desk.doctor import quiet
from ascend_gguf.desk.source import opened
from ascend_gguf.desk.weights import Ranks, modules_of, nbytes_of, to_tune
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile
from ascend_gguf.servable import describe_model, refuse_device
from ascend_gguf.weights import tuned
from ascend_gguf.weights.layout import Layout, Weight

#: Requests that are decoded together.
_DECODED = (1, 8, 32)
#: Another layout than the one without tuning takes at most this share of its time.
_GAIN = 0.95


def run(asked: Namespace) -> tuple[dict[str, Any], str, bool]:
    """The command: what was found, and as text."""
    with opened(asked.model, asked.revision) as file, quiet():
        found = tune(
            file,
            Ranks(asked.tp_size, asked.ep_size, asked.pp_size),
            asked.dtype,
            asked.chunk,
            asked.seconds,
            lambda said: print(said, file=sys.stderr),
        )
    return found, lines(found), True


def tune(
    file: GGUFFile,
    ranks: Ranks,
    dtype: str | None,
    chunk: int | None,
    seconds: float,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time every layout of every weight, and write the choice to the cache.

    Args:
        dtype, chunk: what the model computes in, and tokens of a prompt that are computed
            together; by default what suits the device.
        seconds: after which nothing else is timed.
        tell: is told what goes on.

    Raises:
        GGUFError: the model is not served here, or the cache cannot be written.
    """
    of_patch = _of_patch()
    name, is_npu = of_patch.device_name(), of_patch.is_npu()
    dtype = dtype or ("float16" if "310P" in name else "bfloat16")
    in_torch, config = getattr(torch, dtype), describe_model(file.path)
    refuse_device(file, config, is_npu, dtype)
    for problem in ranks.uneven(file, config):
        raise GGUFError(f"{ranks.tp} ranks cannot share {problem}", file=file.path)
    _tell_of_damage(tell)
    device = of_patch.Device(file.path, in_torch)
    deadline = of_patch.clock() + seconds
    tokens = (*_DECODED, chunk or (2048 if is_npu else 512))
    fanout = (getattr(config, "num_experts_per_tok", 1) or 1) / ranks.ep

    def timed(role: str, weight: Weight, layout: type[Layout]) -> dict[str, Any]:
        found: dict[str, float] = {}
        result = {"bytes": nbytes_of(layout, weight), "seconds": found}
        try:
            # Of a prompt one token has logits.
            for n in _DECODED if role in ("output", "embedding") else tokens:
                if of_patch.clock() > deadline:
                    raise GGUFError(f"not timed within {seconds:g} s")
                found[str(n)] = device.seconds(role, weight, layout, n, fanout)
        except GGUFError as error:
            result["problem"] = error.problem
        return result

    rows = []
    weights = to_tune(modules_of(file, config), ranks, dtype).items()
    for key, (role, module, weight, count) in weights:
        candidates = device.candidates(role, weight)
        if len(candidates) > 1:
            tell(f"{module.name} {module.types} ...")
            row: dict[str, Any] = {"weight": module.name, "types": module.types}
            row |= {"shape": weight.shape, "key": key, "role": role, "count": count}
            rows.append(row | {"layouts": {x.name: timed(role, weight, x) for x in candidates}})
    gc.unfreeze()  # what the device froze: else libraries tell of leaks when Python ends
    wider = of_patch.takes_wider(file.path, in_torch, ranks.tp * ranks.pp if is_npu else 1)
    _choose(rows, wider, together=() if is_npu else ("experts",))
    path = tuned.write(name, {row["key"]: _entry(row) for row in rows if row["chosen"]})
    found = {"device": name, "dtype": dtype, **ranks._asdict(), "takes_wider": wider}
    return found | {"weights": rows, "file": str(path)}


def _tell_of_damage(tell: Callable[[str], None]) -> None:
    try:
        tuned.read()
    except GGUFError as error:
        error.hint = "It is written anew."
        tell(str(error))


def _of_patch() -> Any:
    """The part that asks the engine, which is on this device."""
    if find_spec("sglang") is None:
        raise GGUFError("SGLang is not installed", hint="It times what SGLang would run.")
    return import_module("ascend_gguf.srt.tune")


def _entry(row: dict[str, Any]) -> tuned.Tuned:
    seconds = {name: of["seconds"] for name, of in row["layouts"].items()}
    return tuned.Tuned(row["chosen"], _is_wider(row, row["chosen"]), seconds)


def _choose(rows: list[dict[str, Any]], wider: bool, together: tuple[str, ...]) -> None:
    """Put the chosen layout into each row; None where too little was timed.

    Args:
        wider: whether layouts may take more bytes than those without tuning.
        together: roles whose weights all have the same layout.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["role"] if row["role"] in together else row["key"], []).append(row)
    for group in groups.values():
        first = next(iter(group[0]["layouts"]))
        times = {
            name: _mean_seconds(group, name)
            for name in group[0]["layouts"]
            if all(name in r["layouts"] and "problem" not in r["layouts"][name] for r in group)
            and (wider or not any(_is_wider(row, name) for row in group))
        }
        best = min(times, key=lambda name: times[name], default=None)
        if first in times and best is not None and times[best] > _GAIN * times[first]:
            best = first
        for row in group:
            row["chosen"] = best


def _mean_seconds(group: list[dict[str, Any]], name: str) -> float:
    """The geometric mean over the numbers of tokens: each counts for the same."""
    each = [row["layouts"][name]["seconds"] for row in group]
    totals = [
        sum(row["count"] * seconds[n] for row, seconds in zip(group, each, strict=True))
        for n in each[0]
    ]
    return math.exp(sum(math.log(max(total, 1e-12)) for total in totals) / len(totals))


def _is_wider(row: dict[str, Any], name: str) -> bool:
    first = next(iter(row["layouts"].values()))
    return row["layouts"][name]["bytes"] > first["bytes"]


def lines(found: dict[str, Any]) -> str:
    """What :func:`tune` found, for a terminal."""
    tokens = list(dict.fromkeys(n for row in found["weights"] for n in _tokens(row)))
    head = ("weight", "types", "shape", "", "layout", "bytes", *tokens, "")
    body = []
    for row in found["weights"]:
        shape = " x ".join(map(str, row["shape"]))
        for i, (name, of) in enumerate(row["layouts"].items()):
            what = ("", "", "") if i else (row["weight"], row["types"], shape)
            times = [_microseconds(of["seconds"].get(n)) for n in tokens]
            mark = "*" if name == row["chosen"] else ""
            size = text.size(of["bytes"])
            body.append((*what, mark, name, size, *times, of.get("problem", "")))
    body += _totals(found["weights"], tokens)
    parts = [
        f"{found['device']}; {found['dtype']}, "
        f"tp {found['tp']}, ep {found['ep']}, pp {found['pp']}\n"
        f"microseconds of a product, by tokens; * is chosen, the first of each is without tuning",
        text.table(head, body, range(5, len(head) - 1)),
    ]
    if not found["takes_wider"]:
        parts.append("Layouts that take more bytes are not chosen: the model is large.")
    if not found["weights"]:
        parts = [f"{found['device']}: every weight is dense here, there is nothing to choose"]
    parts.append(f'written to {text.from_home(found["file"])}; {{"tune": "off"}} ignores it')
    return "\n\n".join(parts)


def _totals(rows: list[dict[str, Any]], tokens: list[str]) -> list[tuple]:
    """All products of a step: as chosen, without tuning, dense; where all of them were timed."""
    totals: list[tuple] = []
    for said in ("as chosen", "without tuning", "dense"):
        held = []
        for row in rows:
            first = next(iter(row["layouts"]))
            name = {"as chosen": row["chosen"], "dense": "dense"}.get(said, first)
            held.append((row["count"], row["layouts"].get(name, {"problem": ""})))
        if rows and not any("problem" in of for _, of in held):
            size = text.size(sum(count * of["bytes"] for count, of in held))
            times = [sum(count * of["seconds"].get(n, 0) for count, of in held) for n in tokens]
            what = "" if totals else "all"
            totals.append((what, "", "", "", said, size, *map(_microseconds, times), ""))
    return totals


def _tokens(row: dict[str, Any]) -> list[str]:
    return [n for of in row["layouts"].values() for n in of["seconds"]]


def _microseconds(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{1e6 * seconds:,.1f}" if seconds < 1e-4 else f"{1e6 * seconds:,.0f}"
