"""From a decoder of one block to a kernel for rows of blocks.

Compiling takes 5 to 40 milliseconds, so nothing is kept on disk: each process compiles the decoders
it uses, for the processor it runs on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module

import torch

from ascend_gguf.codegen import I8, I64, LANES, Kernel, Value, loop, pointer, prefetch
from ascend_gguf.decoders.block import Block
from ascend_gguf.decoders.sink import Sink, StoreSink
from ascend_gguf.ggml_types import BlockType

# Weights of unquantized types decoded at once; a power of two.
_AT_ONCE = 4 * LANES


@functools.cache
def kernel(kind: BlockType, dtype: torch.dtype) -> Kernel:
    """The decoder of a block type to float32, float16 or bfloat16, compiled on first use.

    It decodes ``rows`` rows of ``blocks`` blocks.  Arguments: the address of the first byte and the
    bytes from one row to the next; the address of the first weight and the weights from one row to
    the next; ``rows``; ``blocks``.  All of it is one tile.
    """

    return Kernel(
        f"decode_{kind.name}_{dtype}",
        functools.partial(decode_rows, kind),
        x=pointer(I8),
        x_stride=I64,
        y=pointer(dtype),
        y_stride=I64,
        rows=I64,
        blocks=I64,
    )


def decoder_of(kind: BlockType) -> Callable[[Block, Sink], None]:
    """The function that says how a block is decoded."""
    return getattr(import_module(f"ascend_gguf.decoders.{kind.decoder}"), kind.name.lower())


def decode_rows(
    kind: BlockType,
    tile: Value | None,  # noqa: ARG001
    x: Value,
    x_stride: Value,
    y: Value,
    y_stride: Value,
    rows: Value,
    blocks: Value,
    ahead: int = 0,
) -> None:
    """What :func:`kernel` does with its arguments, whatever the tile.

    Args:
        ahead: how many bytes ahead to prefetch blocks; 0 for not at all.
    """
    decode_block = decoder_of(kind)
    for row in loop(0, rows):
        x_row, y_row = x + row * x_stride, y + row * y_stride

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
