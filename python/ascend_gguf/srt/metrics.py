"""Numbers for those who watch a server: ``gguf`` in ``/server_info``, and more in ``/metrics``.

Steps that were replayed and eager ones the engine counts itself, as ``cuda_graph_passes_total``.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sglang.srt.runtime_context import get_observability, get_parallel

from ascend_gguf.weights.report import Holding

#: Of each model of this process, by its file: a draft model is one too.
_models: dict[str, dict[str, Any]] = {}


def record(
    path: str, holdings: Iterable[Holding], seconds: dict[str, float], checked: Counter[str]
) -> None:
    """Keep what is known once a model is loaded.

    Args:
        holdings: its weights.
        seconds: that loading and the self-check took.
        checked: of the self-check, how many shapes ``passed`` and ``failed``.
    """
    layouts: dict[str, Counter[str]] = {}
    for held in holdings:
        of = layouts.setdefault(held.layout, Counter())
        of.update(tensors=1, weights=held.weights, bytes=held.nbytes)
    _models[path] = {
        "layouts": {name: dict(of) for name, of in layouts.items()},
        "seconds": seconds,
        "self_check": {"passed": checked["passed"], "failed": checked["failed"]},
    }
    _publish(path)


def forget(path: str) -> None:
    """Another model takes the place of one."""
    if found := _models.get(path):
        for of in (*found["layouts"].values(), found["seconds"], found["self_check"]):
            of.update(dict.fromkeys(of, 0))
        _publish(path)
        del _models[path]


def of_models() -> dict[str, dict[str, Any]]:
    """What was recorded, by the model's file."""
    return _models


def _publish(path: str) -> None:
    if not get_observability().enable_metrics:
        return
    found = _models[path]
    gauges, parallel = _gauges(), get_parallel()
    labels = {"model": Path(path).name, "tp_rank": parallel.tp_rank, "pp_rank": parallel.pp_rank}
    for gauge, label, values in (
        ("weights_bytes", "layout", {name: of["bytes"] for name, of in found["layouts"].items()}),
        ("load_seconds", "part", found["seconds"]),
        ("self_check_shapes", "result", found["self_check"]),
    ):
        for name, value in values.items():
            gauges[gauge].labels(**labels, **{label: name}).set(value)


@functools.cache
def _gauges() -> dict[str, Any]:
    # The library chooses when it is imported whether processes share their numbers.
    from prometheus_client import Gauge

    said = {
        "weights_bytes": ("layout", "Bytes of weights on a rank's device."),
        "load_seconds": ("part", "Seconds that loading the weights took."),
        "self_check_shapes": ("result", "Layouts and shapes that the self-check tried."),
    }
    labels = ("model", "tp_rank", "pp_rank")
    return {
        name: Gauge(f"ascend_gguf:{name}", text, (*labels, label), multiprocess_mode="mostrecent")
        for name, (label, text) in said.items()
    }
