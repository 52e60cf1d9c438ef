"""What a region of code makes the NPU do: operators, weight traffic, collectives, copies.

    from npu_sim.recorder import record

    with record(weights=model) as region:
        model(x)
    region.operators["aclnnRmsNorm"]      # launches by full operator name
    region.weights_transposed             # weights that operators took as transposed views
    region.weight_bytes                   # bytes of weights read, all operators together
    region.collectives                    # [("HcclAllReduce", bytes), ...] in order
    region.copies["host_to_device"]       # (number, bytes)

Counted is what runs on the device: what a graph replays counts as if it had been launched one by
one (``graph_replays`` says how many launches the host really made instead), what is only captured
does not count.  An operator is taken to read the whole of each argument, with two exceptions:
``aten::embedding`` and ``aten::index_select`` read the rows they return, and a grouped matmul reads
the weights of those experts that have rows.

In a server, ``NPU_SIM_RECORD=FILE`` (``python -m npu_sim run --record FILE``) appends one JSON line
for each forward pass of each process.
"""

from __future__ import annotations

import bisect
import ctypes
import functools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .runtime.opapi.dispatch import VIEW, WRITTEN
from .runtime.start import runtime
from .runtime.task import extent


@dataclass
class Region:
    """What was recorded between entering and leaving ``record``."""

    operators: Counter = field(default_factory=Counter)  # full name -> launches
    weights_read: Counter = field(default_factory=Counter)  # full name -> bytes of weights
    weights_written: Counter = field(default_factory=Counter)
    weights_transposed: Counter = field(default_factory=Counter)  # views, of aclnn operators
    bytes_read: Counter = field(default_factory=Counter)  # full name -> bytes of all arguments
    bytes_written: Counter = field(default_factory=Counter)
    collectives: list[tuple[str, int]] = field(
        default_factory=list
    )  # (name, bytes this rank sends), in order
    copies: dict[str, tuple[int, int]] = field(default_factory=dict)  # direction -> (number, bytes)
    graph_replays: int = 0
    order: list[str] = field(default_factory=list)  # operators, collectives and copies as they ran

    @property
    def launches(self) -> int:
        return self.operators.total() + len(self.collectives)

    @property
    def weight_bytes(self) -> int:
        return self.weights_read.total()

    @property
    def collective_bytes(self) -> int:
        return sum(size for _, size in self.collectives)

    def summary(self) -> dict:
        """Everything but the order, for JSON."""
        return {
            "launches": self.launches,
            "weight_bytes": self.weight_bytes,
            "graph_replays": self.graph_replays,
            "operators": dict(sorted(self.operators.items())),
            "weights_read": dict(sorted(self.weights_read.items())),
            "weights_written": dict(sorted(self.weights_written.items())),
            "weights_transposed": dict(+self.weights_transposed),
            "collectives": self.collectives,
            "copies": self.copies,
        }


class Ranges:
    """Ranges of memory, merged; says how much of another range lies in them."""

    def __init__(self, ranges: Iterable[tuple[int, int]]):
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, size in sorted(r for r in ranges if r[1]):
            if self._ends and start <= self._ends[-1]:
                self._ends[-1] = max(self._ends[-1], start + size)
            else:
                self._starts.append(start)
                self._ends.append(start + size)

    def overlap(self, start: int, size: int) -> int:
        """Bytes of [start, start + size) up to the end of the range it begins in; else 0."""
        i = bisect.bisect_right(self._starts, start) - 1
        if i < 0 or start >= self._ends[i]:
            return 0
        return min(size, self._ends[i] - start)


def weight_ranges(*sources) -> Ranges:
    """Ranges of NPU memory that hold weights.

    sources: modules (parameters, buffers, and tensors kept as plain attributes, alone or in lists
    and dicts, of all their submodules), tensors, or lists of tensors.
    """
    found: list[tuple[int, int]] = []

    def add(value, depth: int = 0):
        if isinstance(value, torch.Tensor):
            if value.device.type == "npu" and value.numel():
                found.append((value.data_ptr(), extent(value)))
        elif isinstance(value, torch.nn.Module):
            for module in value.modules():
                for held in (
                    *module._parameters.values(),
                    *module._buffers.values(),
                    *module.__dict__.values(),
                ):
                    if not isinstance(held, torch.nn.Module):
                        add(held, 1)
        elif depth < 3 and isinstance(value, dict):
            for item in value.values():
                add(item, depth + 1)
        elif depth < 3 and isinstance(value, (list, tuple)):
            for item in value:
                add(item, depth + 1)

    for source in sources:
        add(source)
    return Ranges(found)


@contextmanager
def record(weights=()):
    """Records until the block is left; yields the Region, which is filled in then.

    weights: what counts as weights, as ``weight_ranges`` takes it, or the Ranges themselves.
    """
    library = runtime()
    torch.npu.synchronize()
    _take()  # another recording may be going on: what is before this region is not of it
    region = Region()
    library.npu_sim_record_start()
    try:
        yield region
        torch.npu.synchronize()
    finally:
        library.npu_sim_record_stop()
        ranges = weights if isinstance(weights, Ranges) else weight_ranges(weights)
        _fill(region, _take(), ranges)


@contextmanager
def device_clock(seconds: Callable[[str, int], float]) -> Iterator[Callable[[], float]]:
    """A clock for a block of code, which only operators of the device move.

    Args:
        seconds: that one takes, by its full name and the bytes it reads.
    """
    library = runtime()
    now = 0.0

    def clock() -> float:
        nonlocal now
        torch.npu.synchronize()
        for kind, name, accesses in _take():
            if kind not in ("graph", "copy", "collective"):
                now += seconds(name, sum(size for _, size, how in accesses if not how & WRITTEN))
        return now

    library.npu_sim_record_start()
    try:
        clock()  # what was before
        now = 0.0
        yield clock
    finally:
        library.npu_sim_record_stop()
        _take()


def _take() -> list:
    library = runtime()
    pointer = library.npu_sim_record_take()
    text = ctypes.string_at(pointer).decode()
    library.npu_sim_record_free(pointer)
    return [json.loads(line) for line in text.splitlines()]


def _fill(region: Region, events: list, weights: Ranges) -> None:
    copies: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for kind, name, accesses in events:
        if kind == "graph":
            region.graph_replays += 1
            continue
        region.order.append(name)
        if kind == "copy":
            copies[name][0] += 1
            copies[name][1] += accesses[0][1]
            continue
        if kind == "collective":
            sent = [size for _, size, how in accesses if not how & WRITTEN]
            region.collectives.append(
                (name, sum(sent) if sent else sum(size for _, size, _ in accesses))
            )
            continue
        region.operators[name] += 1
        for address, size, how in accesses:
            written, is_view = how & WRITTEN, how & VIEW
            (region.bytes_written if written else region.bytes_read)[name] += size
            of_weights = weights.overlap(address, size)
            if of_weights:
                region.weights_transposed[name] += bool(is_view)
                (region.weights_written if written else region.weights_read)[name] += of_weights
    region.copies = {name: (n, size) for name, (n, size) in copies.items()}


# ------------------------------------------------------------------------------ in a server process
def record_engine(model_runner) -> None:
    """Wraps the engine's ``ModelRunner.forward``: one JSON line a call, to NPU_SIM_RECORD if set.

    Weights are what the model holds once it is loaded.
    """
    forward, load_model = model_runner.ModelRunner.forward, model_runner.ModelRunner.load_model

    @functools.wraps(load_model)
    def loaded(self, *args, **kwargs):
        result = load_model(self, *args, **kwargs)
        self._npu_sim_weights = weight_ranges(self.model)
        return result

    @functools.wraps(forward)
    def recorded(self, forward_batch, *args, **kwargs):
        path = os.environ.get("NPU_SIM_RECORD")
        if not path:
            return forward(self, forward_batch, *args, **kwargs)
        with record(weights=self._npu_sim_weights) as region:
            result = forward(self, forward_batch, *args, **kwargs)
        line = {
            "pid": os.getpid(),
            "device": self.gpu_id,
            "step": self.forward_pass_id,
            "mode": forward_batch.forward_mode.name,
            "requests": forward_batch.batch_size,
            "tokens": int(forward_batch.input_ids.shape[0]),
            **region.summary(),
        }
        with open(path, "a") as out:  # lines of several processes: O_APPEND keeps each whole
            out.write(json.dumps(line) + "\n")
        return result

    model_runner.ModelRunner.forward = recorded
    model_runner.ModelRunner.load_model = loaded
