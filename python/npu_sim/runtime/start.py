"""Puts the simulation under torch_npu, in two steps around its import."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# Order matters: libascendcl first, then what links to it. torch_npu finds all of them by name.
PRELOADED = (
    "ascendcl",
    "hccl",
    "acl_op_compiler",
    "ge_runner",
    "graph",
    "acl_tdt_channel",
    "atb",
    "opapi",
    "nnopbase",
)

# Kernels of torch_npu for aten operators that stay: allocation, storage, views, copies between host
# and device, pinned memory, streams.  Every other aten kernel of the device runs on the host.
KEPT = frozenset(
    """empty.memory_format empty_strided empty_like new_empty_strided empty_with_format
    empty_with_swapped_memory unsafe_empty_with_format.names empty_with_format.names
    set_ set_.source_Storage_storage_offset set_.source_Tensor set_.source_Storage is_set_to
    resize_ resize_as_
    view as_strided as_strided_ _reshape_alias unfold view_as_complex view_as_real contiguous
    copy_ _to_copy _local_scalar_dense _copy_from_and_resize zero_ zeros zeros_like
    _pin_memory is_pinned record_stream _lazy_clone""".split()
)

# torch_npu's autograd kernels that only redispatch.
KEPT_AUTOGRAD = frozenset(("contiguous", "matmul", "matmul.out"))

# aten operators that torch_npu has no kernel for, which are refused.
LACKING: set[str] = set()

_state: dict = {}


def _libraries() -> Path:
    folder = os.environ.get("NPU_SIM_LIB")
    if not folder:
        raise RuntimeError(
            "no simulated NPU in this process: start it with `python -m npu_sim run -- COMMAND`"
        )
    return Path(folder)


def runtime() -> ctypes.CDLL:
    """libascendcl.so with the npu_sim_* functions of device.h declared."""
    if "ascendcl" not in _state:
        preload()
    return _state["ascendcl"]


def preload() -> None:
    """Before torch_npu: its libraries link to these."""
    if "ascendcl" in _state:
        return
    for name in PRELOADED:
        _state[name] = ctypes.CDLL(_libraries() / f"lib{name}.so", mode=ctypes.RTLD_GLOBAL)
    library = _state["ascendcl"]
    library.npu_sim_is_device.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
    library.npu_sim_zero.argtypes = (ctypes.c_void_p, ctypes.c_uint64)
    library.npu_sim_stream_state.argtypes = (ctypes.c_void_p,)
    library.npu_sim_set_wait_limit.argtypes = (ctypes.c_double,)
    library.npu_sim_record.argtypes = (
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_void_p,
        ctypes.c_uint64,
    )
    library.npu_sim_record_take.restype = ctypes.c_void_p
    library.npu_sim_record_free.argtypes = (ctypes.c_void_p,)
    library.npu_sim_submit.argtypes = (ctypes.c_void_p, ctypes.c_void_p)
    library.aclGetRecentErrMsg.restype = ctypes.c_char_p


def take_over() -> None:
    """After torch_npu: its aten kernels, and the operators that have a model."""
    if "dispatch" in _state:
        return

    from .. import operators
    from ..operators import faults
    from .opapi import device_operators
    from .opapi.dispatch import Dispatch

    faults.check()
    aten = ctypes.CDLL(_libraries() / "libnpu_sim_aten.so", mode=ctypes.RTLD_GLOBAL)
    _state["aten"] = aten
    registered = _registered("PrivateUse1")
    redirected = {n for space, n in registered if space == "aten"} - KEPT
    _install(aten.npu_sim_redirect, "aten", redirected)
    LACKING.update(_lacking())
    _install(aten.npu_sim_refuse, "aten", LACKING)
    autograd = {
        n for space, n in _registered("AutogradPrivateUse1") if space == "aten"
    } - KEPT_AUTOGRAD
    _install(aten.npu_sim_drop_autograd, "aten", autograd)

    models = {**device_operators.OPERATORS, **operators.OPERATORS}
    _state["dispatch"] = Dispatch(runtime(), _state["opapi"], operator_names(), models)

    by_space: dict[str, set[str]] = {}
    for full in operators.register_torch_ops() or ():
        space, name = full.split("::")
        by_space.setdefault(space, set()).add(name)
    for space, found in by_space.items():
        redirect(space, found)


def operator_names() -> list[str]:
    """Every aclnn operator that torch_npu knows."""
    return (_libraries() / "operators.txt").read_text().split()


def symbol(name: str):
    """A function of libopapi.so."""
    return getattr(_state["opapi"], name)


def redirect(space: str, names) -> None:
    """Runs the operators ``names`` of ``space`` on NPU tensors by their CPU kernels."""
    _install(_state["aten"].npu_sim_redirect, space, names)


def _install(function, space: str, names) -> None:
    function(space.encode(), " ".join(sorted(names)).encode())


def _registered(key: str) -> list[tuple[str, str]]:
    import torch

    return [
        tuple(r.split("::")) for r in torch._C._dispatch_get_registrations_for_dispatch_key(key)
    ]


def _lacking() -> set[str]:
    """aten operators with a CPU kernel and none for the NPU: torch_npu runs them on the host."""
    import torch

    composite = (
        "PrivateUse1",
        "CompositeExplicitAutograd",
        "CompositeImplicitAutograd",
        "CompositeExplicitAutogradNonFunctional",
    )
    return {
        name
        for space, name in _registered("CPU")
        if space == "aten"
        and not any(
            torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::{name}", key)
            for key in composite
        )
    }
