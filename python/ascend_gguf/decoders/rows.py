"""From a decoder of one block to a kernel for rows of blocks.

Compiling takes 5 to 40 milliseconds, so nothing is kept on disk: each process compiles the decoders
it uses, for the processor it runs on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module

import torch

from ascend_gguf.codegen import I8, I64, LANES, Kernel, Rows, Value, loop, prefetch, rows
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink, StoreSink
from ascend_gguf.ggml_types import BlockType

# Weights of unquantized types decoded at once; a power of two.
_AT_ONCE = 4 * LANES


@functools.cache
def kernel(kind: BlockType, dtype: torch.dtype) -> Kernel:
    """The decoder of a block type to float32, float16 or bfloat16, compiled on first use.

    Arguments: rows of bytes; rows of weights; how many; how many blocks each has.  All of it is one
    tile.
    """
    function = functools.partial(decode_rows, kind)
    name = f"decode_{kind.name}_{dtype}"
    return Kernel(name, function, x=rows(I8), y=rows(dtype), count=I64, blocks=I64)


def decoder_of(kind: BlockType) -> Callable[[Block, Sink], None]:
    """The function that says how a block is decoded."""
    return getattr(import_module(f"ascend_gguf.decoders.{kind.decoder}"), kind.name.lower())


def decode_rows(
    kind: BlockType,
    tile: Value | None,  # noqa: ARG001
    x: Rows,
    y: Rows,
    count: Value,
    blocks: Value,
    ahead: int = 0,
) -> None:
    """What :func:`kernel` does with its arguments, whatever the tile.

    Args:
        ahead: how many bytes ahead to prefetch blocks; 0 for not at all.
    """
    decode_block = decoder_of(kind)
    for row in loop(0, count):
        x_row, y_row = x[row], y[row]

        def decode(block: Value, count: int, x_row: Value = x_row, y_row: Value = y_row) -> None:
            source = x_row + block * kind.type_size
            if ahead:
                prefetch(source + ahead, kind.type_size * count)
            decode_block(Block(source), StoreSink(y_row + block * kind.block_size, count))

        done: Value | int = 0
        if kind.block_size == 1:
            done = blocks & -_AT_ONCE
            for block in loop(0, done, _AT_ONCE):
                decode(block, _AT_ONCE)
        for block in loop(done, blocks):
            decode(block, 1)
