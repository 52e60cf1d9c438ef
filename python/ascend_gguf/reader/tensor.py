"""One tensor of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ascend_gguf.errors import GGUFError
from ascend_gguf.ggml_types import BlockType
from ascend_gguf.reader.mapping import MappedFile


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies and how it is packed. Its bytes stay on the disk until touched.

    Attributes:
        name: the GGUF name, such as ``blk.0.attn_q.weight``.
        type: the block type of all its rows.
        shape: logical shape, outermost dimension first as in torch (the file has it reversed).
        file: the file that holds it, one of several for a split model.
        offset: of its first byte, from the start of the file.
        nbytes: its size in bytes.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int
    mapping: MappedFile = field(repr=False, compare=False)

    def error(self, problem: str, **facts: Any) -> GGUFError:
        """An error about this tensor, for the caller to raise; facts as its own."""
        return GGUFError(problem, file=self.file, tensor=self.name, **facts)

    @property
    def blocks(self) -> torch.Tensor:
        """The tensor as stored: uint8 of shape ``shape[:-1] + (bytes in a row,)``.

        A view into the mapped file, which it keeps mapped. Copy it before writing to it: a write
        would be seen by every other view, though never by the file.
        """
        rows = self.shape[:-1]
        # A storage of its own: a slice of one storage would drag the whole file along when
        # pickled or shared.
        flat = torch.frombuffer(
            self.mapping, dtype=torch.uint8, count=self.nbytes, offset=self.offset
        )
        return flat.view(*rows, -1)

    @property
    def values(self) -> torch.Tensor:
        """The values of a tensor that is not quantized: ``type.dtype`` of shape ``shape``.

        A view like :attr:`blocks`.

        Raises:
            GGUFError: the tensor is quantized.
        """
        dtype = self.type.dtype
        if dtype is None:
            raise self.error("the tensor is quantized: its bytes are blocks", found=self.type.name)
        blocks = self.blocks
        if self.offset % self.type.type_size:
            # A file may align less than torch's kernels need.
            blocks = blocks.clone()
        return blocks.view(dtype).view(self.shape)

    def array(self) -> np.ndarray:
        """As :meth:`dequantize`; of F32, as vectors are, without torch, which takes a second."""
        if self.type.dtype_name != "float32":
            return self.dequantize().numpy()
        count = self.nbytes // self.type.type_size
        flat = np.frombuffer(self.mapping, np.float32, count, self.offset)
        return flat.reshape(self.shape).copy()

    def dequantize(self) -> torch.Tensor:
        """The values of a tensor of any type, decoded: float32 of shape ``shape``.

        Raises:
            GGUFError: the type cannot be decoded.
        """
        if self.type.dtype is not None:
            return self.values.to(torch.float32, copy=True)
        from ascend_gguf.decoders.dequantize import dequantize  # imports a compiler

        try:
            return dequantize(self.blocks, self.type.ggml_type).view(self.shape)
        except GGUFError as error:
            error.file, error.tensor = str(self.file), self.name
            raise
