"""Kernels: functions of values that threads run on tiles, numbered from 0, until none are left."""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable

import numpy as np

import ascend_gguf.codegen.threads as threads
from ascend_gguf.codegen.backend import backend, running
from ascend_gguf.codegen.compile import compiled
from ascend_gguf.codegen.interpreter import NumPy
from ascend_gguf.codegen.kinds import F32, I32, I64, REST, Kind, pointer
from ascend_gguf.codegen.memory import load
from ascend_gguf.codegen.threads import HEAD
from ascend_gguf.codegen.value import Value


class Kernel:
    """A function and the kinds of its parameters, compiled for the processor this runs on.

    Launch arguments are whole numbers of 64 bits: :data:`~.threads.HEAD`, then one a parameter.

    Args:
        name: of the machine code, where it is printed.
        function: processes one tile: takes its index, and the parameters by name.
        parameters: :data:`~.kinds.I64`, :data:`~.kinds.F32`, a :func:`~.kinds.pointer`, or, the
            last, :data:`~.kinds.REST`.
    """

    def __init__(self, name: str, function: Callable[..., None], **parameters: Kind) -> None:
        self._function, self._parameters = function, parameters
        self._floats = [i for i, kind in enumerate(parameters.values()) if kind is F32]
        self.code = compiled(name.replace("torch.", ""), self._write)  # of dtypes

    def run(self, tiles: int, *arguments: float, most_threads: int | None = None) -> None:
        """Process all tiles.

        Args:
            arguments: addresses as whole numbers.
            most_threads: the most threads; by default as many as tiles, or as torch computes with.
        """
        threads.run(self.code, self._launch(tiles, arguments), most_threads)

    def __call__(self, *arguments: float) -> None:
        """Process one tile in this thread, for callers that divide the work themselves."""
        launch = self._launch(1, arguments)
        self.code(launch.buffer_info()[0])

    def interpret(self, tiles: int, *arguments: float) -> None:
        """As :meth:`run`, in NumPy, operation by operation: the definition of the machine code."""
        launch = self._launch(tiles, arguments)
        # Floats overflow and divide by zero, as processors let them.
        with running(NumPy()), np.errstate(all="ignore"):
            address = backend().constant(I64, [launch.buffer_info()[0]])
            self._write(Value(address, pointer(I64)))

    def _launch(self, tiles: int, arguments: tuple[float, ...]) -> array:
        if not self._floats:
            return array("q", (0, 0, tiles, *arguments))
        numbers = list(arguments)
        for i in self._floats:
            numbers[i] = _float_bits(numbers[i])
        return array("q", (0, 0, tiles, *numbers))

    def _write(self, launch: Value) -> None:
        given = {
            name: launch + place if kind is REST else _given(load(launch + place), kind)
            for place, (name, kind) in enumerate(self._parameters.items(), len(HEAD))
        }
        next_tile, done, tiles = (launch + i for i in range(len(HEAD)))
        for raw in backend().each_tile(next_tile.raw, done.raw, load(tiles).raw):
            self._function(Value(raw, I64), **given)


def address_of(number: Value, element: Kind) -> Value:
    """A whole number of 64 bits as an address."""
    return Value(backend().address(number.raw, element), pointer(element))


def load_acquire(address: Value) -> Value:
    """A whole number; what other threads wrote before they changed it is visible from here on."""
    return Value(backend().load_acquire(address.raw), I64)


def call(code: Value, launch: Value) -> None:
    """Run a kernel: the addresses of its code and of its launch arguments."""
    backend().call_kernel(code.raw, launch.raw)


def wait_for(address: Value, least: Value, looks: int, nap: int) -> None:
    """Wait until the whole number at an address is at least ``least``.

    Args:
        looks: how often to look before sleeping.
        nap: microseconds to sleep, so that other threads get the core.
    """
    backend().wait_for(address.raw, least.raw, looks, nap)


def _given(number: Value, kind: Kind) -> Value:
    if kind.element is not None:
        return address_of(number, kind.element)
    return number.trunc(I32).bitcast(F32) if kind is F32 else number


@functools.lru_cache(1024)
def _float_bits(number: float) -> int:
    """A float32 as a whole number that can be a launch argument."""
    return struct.unpack("<i", struct.pack("<f", number))[0]
