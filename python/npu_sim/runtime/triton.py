"""Triton kernels on the simulated device.

The Triton interpreter copies its arguments to the host and back.  Here it gets views of the device
memory instead, and the launch is one task of the current stream: recorded under the kernel's name,
and part of a graph when one is captured.
"""

from __future__ import annotations

import torch

from .task import host_view, submit


def install(interpreter) -> None:
    """Patches ``triton.runtime.interpreter``."""
    executor = interpreter.GridExecutor
    launch = executor.__call__

    def restore(self, *args):
        """Nothing to copy back: the interpreter worked on the memory itself."""

    def call(self, *args, **kwargs):
        tensors = []

        def view(argument):
            if isinstance(argument, torch.Tensor):
                if argument.device.type != "npu":
                    raise ValueError(
                        f"Triton kernel {self.fn.__name__}: a tensor is on {argument.device}"
                    )
                tensors.append(argument)
                return host_view(argument)
            if isinstance(argument, tuple):
                items = [view(item) for item in argument]
                return type(argument)(*items) if hasattr(argument, "_fields") else tuple(items)
            return argument

        args = [view(a) for a in args]
        kwargs = {k: view(v) for k, v in kwargs.items()}

        def run():
            patched.clear()
            launch(self, *args, **kwargs)

        submit(f"triton::{self.fn.__name__}", run, tensors)

    # The interpreter patches the language for each function that a kernel calls, each time, which
    # takes half of the time: once in a launch for each module does.
    patch, patched = interpreter._patch_lang, set()

    def patch_once(fn):
        module = id(fn.__globals__)
        if module not in patched:
            patched.add(module)
            return patch(fn)

    # The interpreter has no libdevice: its functions do nothing.
    from triton import language as tl
    from triton.language.extra import libdevice

    libdevice.tanh = lambda x: 1 - 2 / (1 + tl.exp(2 * x))
    interpreter._patch_lang = patch_once
    executor.__call__ = call
    executor._restore_args_dev = restore
