"""What int4, int8 and nibble planes share: matrices whose rows are groups of weights.

The matrix is stored as in the file, ``[rows, cols]``: nothing is transposed while loading, and an
embedding gathers whole rows.  An operator that wants ``[K, N]`` takes the transposed view.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch

from ascend_gguf.npu.conversion import conversions
from ascend_gguf.npu.groups import GROUP, Packing
from ascend_gguf.weights.layout import Layout, Piece, Weight

#: The most rows or columns that the Ascend operators take.
_LONGEST = 65535


def packing_unsupported_reason(weight: Weight, packing: Packing) -> str | None:
    """Why codes in groups along the columns cannot hold the weight."""
    for piece in weight.pieces:
        reason = packing.unsupported_reason(piece.kind)
        if reason is not None:
            return reason
        if any(column % GROUP for column in piece.data.columns):
            return f"its columns are cut at {piece.data.columns}, not on multiples of {GROUP}"
        if piece.data.shape[-1] != weight.cols:
            return "its rows come in parts"
    longest = _LONGEST // (2 if packing.planes else 1)
    if weight.cols % GROUP or not GROUP < weight.cols <= longest:
        return f"{weight.cols} columns are not a multiple of {GROUP} from {2 * GROUP} to {longest}"
    return None


class RowGroups(Layout):
    """Base of :class:`.int4.Int4`, :class:`.int8.Int8` and :class:`.planes.NibblePlanes`."""

    #: How codes are kept.
    packing: ClassVar[Packing]
    #: What an element of ``packed`` is.
    packed_dtype: ClassVar[torch.dtype]

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if weight.experts is not None:
            return "it has experts"
        return packing_unsupported_reason(weight, cls.packing)

    @classmethod
    def allocate(cls, weight: Weight) -> RowGroups:
        rows, cols = weight.rows, weight.cols
        nbytes = cols * cls.packing.bits // 8
        packed = torch.zeros(rows, nbytes, dtype=torch.uint8, device="cpu").view(cls.packed_dtype)
        scale = torch.zeros(rows, cols // cls.packing.group, dtype=weight.dtype, device="cpu")
        tensors = {"packed": packed, "scale": scale}
        if any(cls.packing.constant_offset(kind) != 0 for kind in weight.kinds):
            tensors["offset"] = torch.zeros_like(scale)
        return cls(weight.shape, weight.dtype, tensors)

    def __init__(
        self, shape: Sequence[int], dtype: torch.dtype, tensors: dict[str, torch.Tensor]
    ) -> None:
        super().__init__(shape, dtype, tensors)
        #: The rows in parts that the operators take: which rows, and their tensors.
        self.parts: list[tuple[slice, dict[str, torch.Tensor]]] = []
        self._set_parts([slice(0, self.shape[0])], self.tensors)

    def _set_parts(self, parts: list[slice], tensors: dict[str, torch.Tensor]) -> None:
        names = list(dict.fromkeys(name.partition("_")[0] for name in tensors))
        ends = [""] if len(parts) == 1 else [f"_{i}" for i in range(len(parts))]
        self.parts = [
            (part, {name: tensors[name + end] for name in names})
            for part, end in zip(parts, ends, strict=True)
        ]

    def to(self, device: torch.device) -> RowGroups:
        rows = self.shape[0]
        count = -(-rows // _LONGEST)
        step = -(-rows // count)
        parts = [slice(start, min(rows, start + step)) for start in range(0, rows, step)]
        if count > 1:
            # Each with its own memory: torch_npu does not see that a part of a larger tensor is
            # transposed.
            self.tensors = {
                f"{name}_{i}": tensor[part].clone()
                for name, tensor in self.tensors.items()
                for i, part in enumerate(parts)
            }
        super().to(device)
        self._set_parts(parts, self.tensors)
        return self

    def tasks(self, piece: Piece) -> Iterator[Callable[[], None]]:
        rows = slice(piece.row, piece.row + len(piece.data))
        offset = self.tensors.get("offset")
        return conversions(
            piece.data,
            self.packing,
            self.tensors["packed"].view(torch.uint8)[rows],
            self.tensors["scale"][rows],
            None if offset is None else offset[rows],
        )

    @abc.abstractmethod
    def codes(self, packed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows of ``packed`` as codes ``[n, cols]`` of a dtype."""

    def decoded(self, rows: dict[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Weights ``[n, cols]`` of a dtype, from ``n`` rows of each of the tensors."""
        values = self.codes(rows["packed"], dtype).unflatten(-1, (-1, GROUP))
        if "offset" in rows:
            values = values + rows["offset"].unsqueeze(-1)
        return (values * rows["scale"].unsqueeze(-1)).flatten(1)

    def sample(self, rows: slice, expert: int = 0) -> torch.Tensor:
        matrices = []
        for part, tensors in self.parts:
            first, last = max(rows.start, part.start), min(rows.stop, part.stop)
            if first < last:
                here = slice(first - part.start, last - part.start)
                found = {name: tensor[here].cpu() for name, tensor in tensors.items()}
                found = {name: t if name == "packed" else t.float() for name, t in found.items()}
                matrices.append(self.decoded(found, torch.float32))
        return torch.cat(matrices)
