"""Kernels outside torch_npu as operators of the simulated device."""

from __future__ import annotations

import torch

from npu_sim.runtime import start

_libraries = {space: torch.library.Library(space, "FRAGMENT") for space in ("npu", "npu_sim")}


def device_kernel(name: str, schema: str, space: str = "npu_sim"):
    """Makes the decorated function, on CPU tensors, the NPU operator ``space::name``.

    It is then recorded and captured like any other; ``schema`` marks what it writes.
    """

    def register(function):
        _libraries[space].define(name + schema)
        _libraries[space].impl(name, function, "CPU")
        start.redirect(space, [name])
        return getattr(getattr(torch.ops, space), name)

    return register
