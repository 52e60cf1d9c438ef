"""Programs: machine code that threads run on tiles, numbered from 0, until there are none left."""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable
from types import SimpleNamespace

from llvmlite import ir

from ascend_gguf.codegen import threads
from ascend_gguf.codegen.compile import compiled_kernel
from ascend_gguf.codegen.tile_loop import HEAD, each_turn
from ascend_gguf.codegen.vectors import I8, I32, I64

_F32 = ir.FloatType()


class Program:
    """A kernel and the names of the whole numbers it is given.

    Args:
        given: names, in the order in which :meth:`run` takes them.
        write: writes what is done with a tile, from a builder, the tile's number, and a namespace
            with a 64-bit value for each name and ``scratch``, the address of memory that is the
            thread's own, a multiple of 64.
        scratch: its bytes.
    """

    def __init__(
        self,
        given: str,
        write: Callable[[ir.IRBuilder, ir.Value, SimpleNamespace], None],
        scratch: int = 0,
    ) -> None:
        module = ir.Module()
        with each_turn(module) as (builder, job, tile):
            with builder.goto_entry_block():
                values = {
                    name: builder.load(builder.gep(job, [I64(len(HEAD) + place)]))
                    for place, name in enumerate(given.split())
                }
                memory = builder.alloca(I8, max(scratch, 1))
                memory.align = 64
                scratch_address = builder.ptrtoint(memory, I64)
            write(builder, tile, SimpleNamespace(**values, scratch=scratch_address))
        self._kernel = compiled_kernel(module)

    def run(self, tiles: int, *given: int) -> None:
        """Do all tiles.  Addresses are passed as they are, floats as :func:`float_bits`."""
        threads.run(self._kernel, array("q", (0, 0, tiles, *given)))


@functools.lru_cache(1024)
def float_bits(number: float) -> int:
    """A float32 as a whole number that a program can be given."""
    return struct.unpack("<i", struct.pack("<f", number))[0]


def float_of(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """The float32 that :func:`float_bits` made a whole number of."""
    return builder.bitcast(builder.trunc(bits, I32), _F32)


def pointer(
    builder: ir.IRBuilder, address: ir.Value, element: ir.Type, index: ir.Value | None = None
) -> ir.Value:
    """To an element of an array, by the array's address."""
    start = builder.inttoptr(address, element.as_pointer())
    return start if index is None else builder.gep(start, [index])
