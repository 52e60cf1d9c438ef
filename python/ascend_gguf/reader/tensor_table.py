"""The tensor table of a GGUF file: names, shapes, types and places, all checked."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, NamedTuple

from ascend_gguf.errors import CONVERT_AGAIN, DOWNLOAD_AGAIN, GGUFError
from ascend_gguf.ggml_types import BlockType, block_type
from ascend_gguf.reader.cursor import Cursor
from ascend_gguf.reader.tensor import GGUFTensor

SMALLEST_ROW = 8 + 4 + 4 + 8  # bytes: length of an empty name, no dimensions, type, offset

_MOST_DIMS = 4  # GGML_MAX_DIMS
_DEFAULT_ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT


class _Row(NamedTuple):
    name: str
    type: BlockType
    shape: tuple[int, ...]
    nbytes: int
    offset: int  # from the start of the data section


def read_tensor_table(
    cursor: Cursor, count: int, metadata: dict[str, Any]
) -> dict[str, GGUFTensor]:
    """Read ``count`` rows and place them in the data section that follows the table.

    Returns:
        The tensors by name, in file order.

    Raises:
        GGUFError: names the tensor that is malformed, or whose data is not where it should be.
    """
    alignment = _alignment(cursor, metadata)
    cursor.section = "tensor table"
    rows: dict[str, _Row] = {}
    for _ in range(count):
        row = _read_row(cursor)
        if row.name in rows:
            raise cursor.error("the tensor occurs twice", hint=CONVERT_AGAIN)
        if row.offset % alignment:
            raise cursor.error(
                "the tensor's data is not aligned",
                found=f"offset {row.offset}",
                expected=f"a multiple of {alignment}",
                hint=CONVERT_AGAIN,
            )
        rows[row.name] = row
        cursor.tensor = None

    data_start = -(-cursor.offset // alignment) * alignment
    tensors = {row.name: _place(cursor, row, data_start) for row in rows.values()}
    _check_overlap(list(tensors.values()))
    return tensors


def _alignment(cursor: Cursor, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        raise GGUFError(
            "bad alignment of tensor data",
            file=cursor.file,
            key="general.alignment",
            found=repr(alignment),
            expected="a power of two",
            hint=CONVERT_AGAIN,
        )
    return alignment


def _read_row(cursor: Cursor) -> _Row:
    name = cursor.tensor = cursor.name("a tensor's name")
    dims = cursor.uint32()
    if dims > _MOST_DIMS:
        raise cursor.error("too many dimensions", found=dims, expected=f"at most {_MOST_DIMS}")
    shape = tuple(cursor.uint64() for _ in range(dims))[::-1]
    if 0 in shape:
        raise cursor.error("a dimension is zero", found=f"shape {list(shape)}", hint=CONVERT_AGAIN)

    type_ = block_type(cursor.uint32(), file=cursor.file, tensor=name)
    cols = shape[-1] if shape else 1  # no dimensions: a single number
    row_bytes = type_.row_bytes(cols, file=cursor.file, tensor=name)
    return _Row(name, type_, shape, math.prod(shape[:-1]) * row_bytes, cursor.uint64())


def _place(cursor: Cursor, row: _Row, data_start: int) -> GGUFTensor:
    offset = data_start + row.offset
    size = len(cursor.buffer)
    if offset + row.nbytes > size:
        raise GGUFError(
            "data runs past the end of the file",
            file=cursor.file,
            tensor=row.name,
            found=f"{size} bytes",
            expected=f"at least {offset + row.nbytes} for {row.type.name} {list(row.shape)}",
            hint=DOWNLOAD_AGAIN,
        )
    return GGUFTensor(row.name, row.type, row.shape, cursor.file, offset, row.nbytes, cursor.buffer)


def _check_overlap(tensors: list[GGUFTensor]) -> None:
    for first, second in pairwise(sorted(tensors, key=lambda tensor: tensor.offset)):
        if first.offset + first.nbytes > second.offset:
            raise second.error(
                f"data overlaps that of tensor {first.name!r}",
                found=f"offset {second.offset}",
                expected=f"at least {first.offset + first.nbytes}",
                hint=DOWNLOAD_AGAIN,
            )
