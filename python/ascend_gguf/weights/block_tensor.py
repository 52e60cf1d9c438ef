"""A matrix of weights that is still in GGUF blocks.

Engines shard, merge and copy weights by logical rows and columns.  :class:`BlockTensor` lets their
own weight loaders do that to a matrix that is not decoded yet: it has the logical shape, slicing it
is free, and copying it into a parameter decodes exactly that slice.  So the same code serves every
kind of layer, every way to shard it and every block type, and a slice may begin inside a block.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from ascend_gguf.decoders.dequantize import OUTPUT_DTYPES, dequantize
from ascend_gguf.ggml_types import BLOCK_TYPES, block_type
from ascend_gguf.reader.chunked_read import read, read_rows
from ascend_gguf.weights import load_stream
from ascend_gguf.weights.in_blocks import InBlocks

_aten = torch.ops.aten

_PLAIN_TYPES = {
    kind.dtype: kind.ggml_type
    for kind in BLOCK_TYPES.values()
    if kind.dtype is not None and kind.decoder is not None
}

# The most weights that are decoded at once: more cost memory where the result is copied to another
# place.
_WEIGHTS_AT_ONCE = 1 << 22


class BlockTensor(InBlocks, load_stream.Streamed):
    """A read-only matrix of weights, stored as GGUF blocks on the host.

    Shape ``[..., rows, cols]`` in weights; reports dtype float32, the precision blocks are defined
    in, on the device ``cpu``.  ``narrow``, slicing with step 1, ``split``, ``select`` and
    ``detach`` make views; ``dst.copy_(self)`` decodes into ``dst``; any other operator decodes
    first: it is correct, if slower.

    Args:
        blocks: uint8 ``[..., rows, row_bytes]``, whole rows of blocks; kept by reference.
        ggml_type: id of the block type (``gguf.GGMLQuantizationType``).
        columns: the ``(start, stop)`` range of weights of each row to show; all by default.
        factor: what every weight is multiplied with, beside the scales of its block.

    """

    @staticmethod
    def __new__(
        cls,
        blocks: torch.Tensor,
        ggml_type: int,
        columns: tuple[int, int] | None = None,
        factor: float = 1.0,
    ) -> BlockTensor:
        kind = block_type(ggml_type)
        start, stop = columns or (0, kind.row_cols(blocks.shape[-1]))
        self = torch.Tensor._make_wrapper_subclass(
            cls, (*blocks.shape[:-1], stop - start), dtype=torch.float32
        )
        self.blocks, self.block_type, self.columns = blocks, kind, (start, stop)
        self.factor = factor
        return self

    def rows(self, start: int, stop: int) -> BlockTensor:
        """Some rows of each matrix: a view."""
        return self._slice(self.dim() - 2, start, stop)

    def matrices(self) -> list[BlockTensor]:
        """Itself, or a view of each expert's matrix."""
        return [self] if self.dim() == 2 else [self._view(blocks) for blocks in self.blocks]

    def dequantize_into(self, out: torch.Tensor) -> torch.Tensor:
        """Decode into ``out``: same shape, any device, any dtype torch converts float32 to."""
        _check_shape(out, self)
        if self.dim() > 2:
            for i in range(len(self)):
                self._view(self.blocks[i]).dequantize_into(out[i])
            return out
        kind, cols = self.block_type, self.shape[-1]
        blocks, skip = self.covering()
        is_cut = kind.row_cols(blocks.shape[-1]) != cols
        rows = _WEIGHTS_AT_ONCE // max(1, kind.row_cols(self.blocks.shape[-1]))
        for place, some in read_rows(blocks, max(1, rows)):
            if not is_cut and self.factor == 1:
                dequantize(some, kind.ggml_type, out=out[place])
                continue
            # Off a block boundary: decode the covering blocks, then cut.
            dtype = out.dtype if out.dtype in OUTPUT_DTYPES else torch.float32
            if self.factor != 1:  # rounded once, with the factor
                dtype = torch.float32
            values = dequantize(some, kind.ggml_type, dtype)[..., skip : skip + cols]
            out[place].copy_(values if self.factor == 1 else values * self.factor)
        return out

    def read(self) -> torch.Tensor:
        """:attr:`blocks`, read into memory."""
        load_stream.mark_used(self)
        return read(self.blocks)

    def dequantize(self) -> torch.Tensor:
        """The weights, float32 on the host."""
        load_stream.mark_used(self)
        return self.dequantize_into(torch.empty(self.shape, dtype=torch.float32, device="cpu"))

    def _view(self, blocks: torch.Tensor, columns: tuple[int, int] | None = None) -> BlockTensor:
        return BlockTensor(blocks, self.block_type.ggml_type, columns or self.columns, self.factor)

    def _slice(self, dim: int = 0, start: int | None = None, end: int | None = None) -> BlockTensor:
        dim %= self.dim()
        size = self.shape[dim]
        start, end, _ = slice(start, end).indices(size)
        length = max(0, end - start)
        if dim < self.dim() - 1:
            return self._view(self.blocks.narrow(dim, start, length))
        first = self.columns[0] + start
        return self._view(self.blocks, (first, first + length))

    def _split(self, sizes: int | Sequence[int], dim: int = 0) -> list[BlockTensor]:
        whole = self.shape[dim]
        if isinstance(sizes, int):
            sizes = [min(sizes, whole - start) for start in range(0, whole, sizes)]
        ends = list(itertools.accumulate(sizes))
        if not ends or ends[-1] != whole:
            raise ValueError(f"sizes {sizes} do not add up to {whole}")
        return [self._slice(dim, end - n, end) for n, end in zip(sizes, ends, strict=True)]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch declares none
        cls,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is _aten.copy_.default and not isinstance(args[0], cls):
            out, source = args[:2]
            _check_shape(out, source)
            load_stream.run(source, lambda: source.dequantize_into(out), out)
            return out
        if func in (_aten.detach.default, _aten.alias.default):
            return args[0]._view(args[0].blocks)
        if func is _aten.slice.Tensor and args[4:] in ((), (1,)):  # the step
            return args[0]._slice(*args[1:4])
        if func is _aten.select.int:
            self, dim, index = args
            if dim % self.dim() < self.dim() - 1 and self.dim() > 1:
                return self._view(self.blocks.select(dim % self.dim(), index))
        if func in (_aten.split.Tensor, _aten.split_with_sizes.default):
            return args[0]._split(*args[1:], **kwargs)
        _refuse_writes(func, args, kwargs)
        decoded = tree_map_only(cls, cls.dequantize, (args, kwargs))
        return func(*decoded[0], **decoded[1])

    def __repr__(self) -> str:  # type: ignore[override]  # the default would decode to print
        return f"BlockTensor({self.block_type.name}, shape={tuple(self.shape)})"


def as_blocks(data: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
    """F32, F16 or BF16 ``[..., rows, cols]`` as a :class:`BlockTensor`, to be loaded as blocks are.

    Anything else, a :class:`BlockTensor` too, is returned as it is.
    """
    ggml_type = _PLAIN_TYPES.get(data.dtype)
    is_row_major = data.dim() > 0 and data.stride(-1) == 1
    if ggml_type is None or isinstance(data, BlockTensor) or not is_row_major:
        return data
    return BlockTensor(data.view(torch.uint8), ggml_type, factor=factor)


def _check_shape(out: torch.Tensor, source: BlockTensor) -> None:
    if out.shape != source.shape:
        raise ValueError(f"out has shape {tuple(out.shape)}, not {tuple(source.shape)}")


def _refuse_writes(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> None:
    """Refuse an operator that writes to a BlockTensor: it would change a decoded copy unseen."""
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        written = argument.alias_info is not None and argument.alias_info.is_write
        if written and isinstance(value, BlockTensor):
            raise RuntimeError(f"a BlockTensor is read-only, and {func} would write to it")
