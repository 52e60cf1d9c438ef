"""From a decoder of one block to machine code for rows of blocks.

Compiling takes 5 to 40 milliseconds, so nothing is kept on disk: each process compiles the decoders
it uses, for the processor it runs on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib import import_module

import torch
from llvmlite import ir

from ascend_gguf.codegen.compile import compiled, host_machine
from ascend_gguf.codegen.control import loop
from ascend_gguf.codegen.vectors import I8, I64, LANES, STORED, Bytes, fetch
from ascend_gguf.decoders.sink import Weights
from ascend_gguf.ggml_types import BlockType

#: Decodes ``rows`` rows of ``blocks`` blocks each.  Arguments: the address of the first byte and
#: the bytes from one row to the next; the address of the first weight and the weights from one row
#: to the next; ``rows``; ``blocks``.  Runs without the interpreter's lock.
Kernel = Callable[[int, int, int, int, int, int], None]

# Plain numbers decoded at once; a power of two.
_AT_ONCE = 4 * LANES


@functools.cache
def kernel(kind: BlockType, dtype: torch.dtype) -> Kernel:
    """The decoder of a block type to float32, float16 or bfloat16, compiled on first use."""
    return compiled(module_of(kind, dtype), host_machine())


def decoder_of(kind: BlockType) -> Callable:
    """The function that writes down how a block is decoded: see :mod:`.codegen.vectors`."""
    return getattr(import_module(f"ascend_gguf.decoders.{kind.decoder}"), kind.name.lower())


def module_of(kind: BlockType, dtype: torch.dtype) -> ir.Module:
    """A module with one function, ``decode``: a :data:`Kernel`."""
    module = ir.Module()
    types = [I8.as_pointer(), I64, STORED[dtype].as_pointer(), I64, I64, I64]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), types), "decode")
    x, x_stride, y, y_stride, rows, blocks = function.args
    builder = ir.IRBuilder(function.append_basic_block())

    decode_rows(builder, kind, dtype, x, x_stride, y, y_stride, rows, blocks)
    builder.ret_void()
    return module


def decode_rows(
    builder: ir.IRBuilder,
    kind: BlockType,
    dtype: torch.dtype,
    x: ir.Value,
    x_stride: ir.Value,
    y: ir.Value,
    y_stride: ir.Value,
    rows: ir.Value,
    blocks: ir.Value,
    ahead: int = 0,
) -> None:
    """Write down what a :data:`Kernel` does with its arguments.

    ``ahead``: how many bytes before it reads blocks it asks memory for them, if it does.
    """
    decode_block = decoder_of(kind)
    with loop(builder, I64(0), rows, 1) as row:
        x_row = builder.gep(x, [builder.mul(row, x_stride)])
        y_row = builder.gep(y, [builder.mul(row, y_stride)])

        def decode(block: ir.Value, count: int) -> None:
            source = builder.gep(x_row, [builder.mul(block, I64(kind.type_size))])
            target = builder.gep(y_row, [builder.mul(block, I64(kind.block_size))])
            if ahead:
                fetch(builder, builder.gep(source, [I64(ahead)]), kind.type_size * count)
            decode_block(Bytes(builder, source), Weights(builder, target, dtype, count))

        done = I64(0)
        if kind.block_size == 1:
            done = builder.and_(blocks, I64(-_AT_ONCE))
            with loop(builder, I64(0), done, _AT_ONCE) as block:
                decode(block, _AT_ONCE)
        with loop(builder, done, blocks, 1) as block:
            decode(block, 1)
