"""Kernels: functions of values that threads run on tiles, numbered from 0, until none are left."""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

import ascend_gguf.codegen.threads as threads
from ascend_gguf.codegen.backend import backend, running
from ascend_gguf.codegen.compile import compiled
from ascend_gguf.codegen.interpreter import NumPy
from ascend_gguf.codegen.kinds import F32, I32, I64, REST, Kind, is_rows, pointer
from ascend_gguf.codegen.memory import Rows, load
from ascend_gguf.codegen.threads import HEAD
from ascend_gguf.codegen.value import Value

#: What a kernel is launched with, for a parameter.
Argument: TypeAlias = "float | torch.Tensor | tuple[int, int] | None"


class Kernel:
    """A function and the kinds of its parameters, compiled for the processor this runs on.

    Launch arguments are whole numbers of 64 bits: :data:`~.threads.HEAD`, then one a parameter,
    or two for rows: the address, and how far apart they are.

    Args:
        name: of the machine code, where it is printed.
        function: processes one tile: takes its index, and the parameters by name.
        parameters: :data:`~.kinds.I64`, :data:`~.kinds.F32`, a :func:`~.kinds.pointer`,
            :func:`~.kinds.rows`, or, the last, :data:`~.kinds.REST`.
    """

    def __init__(self, name: str, function: Callable[..., None], **parameters: Kind) -> None:
        self._function, self._parameters = function, parameters
        # Those that are not whole numbers as they come; from the last on, as rows take two places.
        given = reversed(list(enumerate(parameters.values())))
        self._converted = [(i, _conversion(kind)) for i, kind in given if kind not in (I64, REST)]
        self.code = compiled(name.replace("torch.", ""), self._write)  # of dtypes

    def run(self, tiles: int, *arguments: Argument, most_threads: int | None = None) -> None:
        """Process all tiles.

        Args:
            arguments: for an address or rows a tensor, None for one that is not read, or the
                whole numbers.
            most_threads: the most threads; by default as many as tiles, or as torch computes with.
        """
        threads.run(self.code, self._launch(tiles, arguments), most_threads)

    def __call__(self, *arguments: Argument) -> None:
        """Process one tile in this thread, for callers that divide the work themselves."""
        launch = self._launch(1, arguments)
        self.code(launch.buffer_info()[0])

    def interpret(self, tiles: int, *arguments: Argument) -> None:
        """As :meth:`run`, in NumPy, operation by operation: the definition of the machine code."""
        launch = self._launch(tiles, arguments)
        # Floats overflow and divide by zero, as processors let them.
        with running(NumPy()), np.errstate(all="ignore"):
            address = backend().constant(I64, [launch.buffer_info()[0]])
            self._write(Value(address, pointer(I64)))

    def _launch(self, tiles: int, arguments: Sequence[Argument]) -> array:
        numbers: list[Any] = list(arguments)
        for i, convert in self._converted:
            numbers[i : i + 1] = convert(numbers[i])
        return array("q", (0, 0, tiles, *numbers))

    def _write(self, launch: Value) -> None:
        given: dict[str, Value | Rows] = {}
        place = len(HEAD)
        for name, kind in self._parameters.items():
            given[name] = _given(launch + place, kind)
            place += 2 if is_rows(kind) else 1
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


def _given(place: Value, kind: Kind) -> Value | Rows:
    """A parameter of some kind, from where its launch arguments are."""
    if kind is REST:
        return place
    number = load(place)
    if kind.element is None:
        return number.trunc(I32).bitcast(F32) if kind is F32 else number
    address = address_of(number, kind.element)
    return Rows(address, load(place + 1)) if is_rows(kind) else address


def _conversion(kind: Kind) -> Callable[[Any], tuple[int, ...]]:
    """What makes launch arguments of an argument."""
    return _float_bits if kind is F32 else _spaced if is_rows(kind) else _address


def _address(array: torch.Tensor | int | None) -> tuple[int]:
    if type(array) is int:  # as a rule; to ask whether it is a tensor takes longer
        return (array,)
    return (array.data_ptr() if isinstance(array, torch.Tensor) else 0,)


def _spaced(rows: torch.Tensor | tuple[int, int] | None) -> tuple[int, int]:
    return (rows.data_ptr(), rows.stride(0)) if isinstance(rows, torch.Tensor) else rows or (0, 0)


@functools.lru_cache(1024)
def _float_bits(number: float) -> tuple[int]:
    return struct.unpack("<i", struct.pack("<f", number))
