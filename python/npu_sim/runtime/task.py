"""Work of the simulated device that is written in Python: host views, and tasks on streams."""

from __future__ import annotations

import ctypes
import itertools
import traceback
from collections.abc import Callable, Iterable

import torch

from .opapi.dispatch import ACLNN_ERR_INNER, Access
from .start import runtime


def extent(tensor: torch.Tensor) -> int:
    """Bytes from the first element to the end of the last."""
    if not tensor.numel():
        return 0
    return (
        1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    ) * tensor.element_size()


def host_view(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over the memory of an NPU tensor.  It does not keep the NPU tensor alive."""
    if not tensor.numel():
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    size = extent(tensor)
    memory = (ctypes.c_char * size).from_address(tensor.data_ptr())
    flat = torch.frombuffer(memory, dtype=tensor.dtype, count=size // tensor.element_size())
    return flat.as_strided(tensor.shape, tensor.stride())


class _Task(ctypes.Structure):
    """NpuSimTask of device.h."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("run", ctypes.c_void_p),
        ("drop", ctypes.c_void_p),
        ("state", ctypes.c_void_p),
        ("already_ran", ctypes.c_int),
    ]


_tasks: dict[int, tuple[str, Callable, list]] = {}
_numbers = itertools.count(1)


@ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
def _run(number):
    name, function, accesses = _tasks[number]
    try:
        with torch.inference_mode(False), torch.no_grad():
            function()
        if runtime().npu_sim_recording():
            array = (Access * len(accesses))(*accesses)
            runtime().npu_sim_record(b"op", name.encode(), array, len(accesses))
        return 0
    except Exception:
        runtime().npu_sim_error(
            ACLNN_ERR_INNER, b"%s", f"{name}: {traceback.format_exc()}".encode()
        )
        return ACLNN_ERR_INNER


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _drop(number):
    _tasks.pop(number, None)


def submit(name: str, function: Callable[[], None], tensors: Iterable[torch.Tensor]) -> None:
    """Runs ``function`` as one task of the current stream; ``tensors`` are what it reads."""
    number = next(_numbers)
    _tasks[number] = (name, function, [(t.data_ptr(), extent(t), 0) for t in tensors if t.numel()])
    task = _Task(
        name.encode(),
        ctypes.cast(_run, ctypes.c_void_p),
        ctypes.cast(_drop, ctypes.c_void_p),
        number,
        0,
    )
    library = runtime()
    if library.npu_sim_submit(
        ctypes.c_void_p(torch.npu.current_stream().npu_stream), ctypes.byref(task)
    ):
        raise RuntimeError(library.aclGetRecentErrMsg().decode())
