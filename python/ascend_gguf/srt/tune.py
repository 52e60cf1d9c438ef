"""Layouts that the device decides: how long each takes here, and what loading knows of that."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from itertools import cycle, islice
from types import SimpleNamespace

import llvmlite.binding as llvm
import psutil
import torch
import torch.nn.functional as F
from sglang.srt.layers.quantization.gguf import GGUFConfig
from sglang.srt.layers.quantization.unquant import NPUUnquantMoEMethod
from sglang.srt.runtime_context import get_parallel
from sglang.srt.utils import is_npu

from ascend_gguf.cpu.linear import experts_product
from ascend_gguf.errors import GGUFError
from ascend_gguf.npu.choice import choose
from ascend_gguf.npu.int8 import Int8, RequantizedInt8
from ascend_gguf.npu.products import EXPERTS, LINEAR
from ascend_gguf.npu.self_check import refusal
from ascend_gguf.reader import open_gguf
from ascend_gguf.srt.hardware_backend.npu.quantization.moe_methods import NPUGGUFMoEMethod
from ascend_gguf.srt.layers.quantization.kernels import KERNELS, expert_layouts, works
from ascend_gguf.weights import tuned
from ascend_gguf.weights.dense import Dense
from ascend_gguf.weights.layout import Layout, Weight

logger = logging.getLogger(__name__)

#: What tells the time, in seconds.
clock = time.perf_counter

#: Copies of a weight take turns, as a model's weights do: none is found in the processor's cache.
_CACHE, _MOST_COPIES = 256 << 20, 32
#: Seconds of calls that are timed together, in which memory is read through, and how many those
#: are at the most.
_ENOUGH, _MOST_CALLS = 0.05, 64
#: A call that takes longer is timed once.
_LONG = 0.5
#: Up to so many tokens a step is replayed from a graph, on an NPU.
_DECODED = 64
#: In every byte of codes: a scale in any of the float formats is then a small normal number.
_BYTE = 0x30


def device_name() -> str:
    """This device and what computes on it: what is found on one device holds on such ones."""
    if not is_npu():
        return f"{llvm.get_host_cpu_name()}, torch {torch.__version__}"
    cann = import_module("torch_npu.npu.utils").get_cann_version("CANN")
    torch_npu = import_module("torch_npu").__version__
    return f"{torch.npu.get_device_name()}, CANN {cann}, torch_npu {torch_npu}"


def memory() -> tuple[int, int]:
    """Bytes of the device that are free, and all."""
    if is_npu():
        return torch.npu.mem_get_info()
    host = psutil.virtual_memory()
    return host.available, host.total


def preferences(options: Mapping[str, str], path: str, dtype: torch.dtype) -> tuned.Preferences:
    """What loading a model obeys; nothing, said in the log, where the file of it is damaged."""
    if options.get("tune") == "off":
        return tuned.Preferences()
    parallel = get_parallel()
    try:
        known = tuned.read()
    except GGUFError as error:
        if parallel.tp_rank == 0:
            logger.warning("%s", error)
        return tuned.Preferences()
    if not known:
        return tuned.Preferences()
    # Ranks on the host share its memory.
    ranks = parallel.tp_size * parallel.pp_size if is_npu() else 1
    return tuned.Preferences(known.get(device_name(), {}), takes_wider(path, dtype, ranks))


def report(preferences: tuned.Preferences) -> None:
    """Say in the log what was obeyed."""
    if preferences.obeyed:
        logger.info(
            "%d weights have the layout that `ascend-gguf tune` found quickest here "
            '({"tune": "off"} ignores it)',
            len(preferences.obeyed),
        )


def takes_wider(path: str, dtype: torch.dtype, ranks: int) -> bool:
    """Whether layouts that take more bytes are no danger for a model on this device."""
    weights = sum(torch.Size(t.shape).numel() for t in open_gguf(path).tensors.values())
    return tuned.has_room(weights, dtype, ranks, memory()[1])


class Device:
    """Times products with weights of one model.

    Args:
        path: of the model.
        dtype: what it computes in.
    """

    def __init__(self, path: str, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._config = SimpleNamespace(choice=choose({}, path))
        self._device = torch.device("npu" if is_npu() else "cpu")
        # Torch looks through all objects before it captures a graph: not through the engine's.
        gc.freeze()

    def candidates(self, role: str, weight: Weight) -> list[type[Layout]]:
        """The layouts that a weight may have, the one without tuning first, ``Dense`` last."""
        config: GGUFConfig = self._config
        if role == "experts":
            operator, layouts = EXPERTS, expert_layouts(config, self._dtype)
        else:
            operator, kernel = LINEAR, KERNELS[role](config, self._dtype)
            layouts = () if kernel is None else (*kernel.layouts, *kernel.others)
        able = [layout for layout in layouts if layout.unsupported_reason(weight) is None]
        if Int8 in able and RequantizedInt8 in able:  # the same there
            able.remove(RequantizedInt8)
        if is_npu():
            able = [layout for layout in able if works(operator, layout, self._dtype)]
        return [*able, Dense]

    def seconds(
        self, role: str, weight: Weight, layout: type[Layout], tokens: int, fanout: float = 1
    ) -> float:
        """Of one product with a synthetic weight, of which nothing is kept.

        Args:
            fanout: of experts, how many of these ranks' a token has.

        Raises:
            GGUFError: the device refuses it, or lacks the memory.
        """
        try:
            with torch.inference_mode(), torch.device("cpu"):
                return self._seconds(role, weight, layout, tokens, fanout)
        except GGUFError:
            raise
        except Exception as error:
            try:
                problem = refusal(error)
            except Exception:
                problem = "not enough memory"
            raise GGUFError(f"{layout.name}: {problem}") from None
        finally:
            if is_npu():
                torch.npu.empty_cache()

    def _seconds(
        self, role: str, weight: Weight, layout: type[Layout], tokens: int, fanout: float
    ) -> float:
        rows = max(1, round(tokens * fanout)) if role == "experts" else tokens
        x = torch.randn(rows, weight.cols).to(self._dtype).to(self._device)
        calls = self._calls(role, self._copies(layout, weight), x)
        return _timed(calls, is_decoded=tokens <= _DECODED)

    def _copies(self, layout: type[Layout], weight: Weight) -> list[Layout]:
        copies = []
        while not copies or len(copies) < min(_MOST_COPIES, _CACHE // copies[0].nbytes):
            copy = layout.allocate(weight)  # takes no memory yet
            if 2 * copy.nbytes > min(memory()[0], psutil.virtual_memory().available):
                raise GGUFError(f"{layout.name}: not enough memory")
            for tensor in copy.tensors.values():
                tensor.fill_(0.01 if tensor.is_floating_point() else _BYTE)
            copies.append(copy.to(self._device))
        return copies

    def _calls(
        self, role: str, copies: list[Layout], x: torch.Tensor
    ) -> list[Callable[[], object]]:
        """What multiplies ``x`` with each copy of a weight."""
        if role != "experts":
            kernel = KERNELS[role](self._config, self._dtype)
            return [
                partial(F.linear, x, copy.tensors["weight"])
                if isinstance(copy, Dense)
                else partial(kernel.linear, x, copy)
                for copy in copies
            ]
        experts, rows = copies[0].experts, len(x)
        counts = torch.tensor([rows // experts + (i < rows % experts) for i in range(experts)])
        return [_experts_call(copy, x, counts.to(self._device)) for copy in copies]


def _timed(calls: list[Callable[[], object]], is_decoded: bool) -> float:
    """Seconds of one of the calls, which take turns."""
    _once(calls[0])  # what is compiled or prepared is so now
    once = _once(calls[-1])
    if once > _LONG:
        return once
    count = max(1, min(_MOST_CALLS, int(_ENOUGH / max(once, 1e-9))))
    turns = list(islice(cycle(calls), count))

    def run() -> None:
        for call in turns:
            call()

    if is_npu() and is_decoded:
        graph = torch.npu.NPUGraph()
        with torch.npu.graph(graph):
            run()
        run = graph.replay
    return min(_once(run) for _ in range(3)) / len(turns)


def _once(run: Callable[[], object]) -> float:
    synchronize = torch.npu.synchronize if is_npu() else lambda: None
    synchronize()
    start = clock()
    run()
    synchronize()
    return clock() - start


def _experts_call(layout: Layout, x: torch.Tensor, counts: torch.Tensor) -> Callable[[], object]:
    """What multiplies ``x [n, K]``, ``counts`` rows of each expert, with a layer's experts."""
    if not is_npu():
        product = _dense_product if isinstance(layout, Dense) else experts_product
        return partial(product, layout, x, counts)
    if not isinstance(layout, Dense):
        return partial(NPUGGUFMoEMethod(layout, None).product, x, counts)
    method, layer = NPUUnquantMoEMethod(), SimpleNamespace(w2_weight=layout.tensors["weight"])
    method.process_weights_after_loading(layer, "w2")
    return partial(method.apply, layer, x, counts, None, x.dtype, "w2", group_list_type=1)


def _dense_product(layout: Dense, x: torch.Tensor, counts: torch.Tensor) -> None:
    parts = x.split(counts.tolist())
    for matrix, rows in zip(layout.tensors["weight"], parts, strict=True):
        if len(rows):
            F.linear(rows, matrix)
