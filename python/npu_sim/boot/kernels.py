"""Kernels outside torch_npu as operators of the simulated device."""

from __future__ import annotations

import torch

from npu_sim.runtime import start

_library = torch.library.Library("npu_sim", "FRAGMENT")


def device_kernel(name: str, schema: str):
    """Makes the decorated function, on CPU tensors, the NPU operator ``npu_sim::name``.

    It is then recorded and captured like any other; ``schema`` marks what it writes.
    """

    def register(function):
        _library.define(name + schema)
        _library.impl(name, function, "CPU")
        start.redirect("npu_sim", [name])
        return getattr(torch.ops.npu_sim, name)

    return register
