"""Experts for the Ascend grouped matmul, which takes codes of 4 bits where they are in groups."""

from __future__ import annotations

import weakref

import torch

from ascend_gguf.npu.column_groups import ColumnGroups
from ascend_gguf.npu.int4 import Int4
from ascend_gguf.npu.nibble_planes import PLANES_APART, WIDE_PLANES_APART
from ascend_gguf.weights.layout import Layout, Weight

#: The most experts, and one more than the longest row, that the operator takes.
_EXPERTS, _TOO_LONG = 1024, 65536


class Grouped(ColumnGroups):
    """Base of the layouts below: ``[experts, K, N / 8]``, see :class:`.ColumnGroups`.

    ``offset``: where it is the same everywhere, one tensor for all layers of a shape, as the
    operator always wants one.
    """

    @classmethod
    def unsupported_reason(cls, weight: Weight) -> str | None:
        if weight.experts is None:
            return "it has no experts"
        planes = 2 if cls.packing.planes else 1
        if weight.experts > _EXPERTS or max(planes * weight.cols, weight.rows) >= _TOO_LONG:
            return f"{weight.shape} is more than the operator takes"
        return cls._columns_unsupported_reason(weight)

    @classmethod
    def _constant_offset(cls, weight: Weight) -> float | None:
        constants = {cls.packing.constant_offset(kind) for kind in weight.kinds}
        return constants.pop() if len(constants) == 1 else None

    @classmethod
    def _has_offset(cls, weight: Weight) -> bool:
        return cls._constant_offset(weight) is None

    @classmethod
    def allocate(cls, weight: Weight) -> Grouped:
        layout = super().allocate(weight)
        constant = cls._constant_offset(weight)
        if constant is not None:
            layout.shared["offset"] = _constant(constant, layout.tensors["scale"])
        return layout

    @property
    def offset(self) -> torch.Tensor:
        """The offsets, its own or shared."""
        return (self.tensors | self.shared)["offset"]

    def to(self, device: torch.device) -> Grouped:
        super().to(device)
        for name, tensor in self.shared.items():
            value = tensor.flatten()[0].item()
            self.shared[name] = _constant(value, self.tensors["scale"])
        return self


class GroupedInt4(Grouped):
    """Experts in four bits: see :class:`.Int4`."""

    name = "int4, experts"
    packing = Int4.packing


class GroupedWidePlanes(Grouped):
    """Experts in eight bits with a scale for 32 weights: see :class:`.WidePlanes`."""

    name = "wide planes, experts"
    packing = WIDE_PLANES_APART


class GroupedNibblePlanes(Grouped):
    """Experts in eight bits: see :class:`.NibblePlanes`."""

    name = "planes, experts"
    packing = PLANES_APART


#: Narrowest first.
EXPERT_LAYOUTS: tuple[type[Layout], ...] = (GroupedInt4, GroupedWidePlanes, GroupedNibblePlanes)


_constants: weakref.WeakValueDictionary[tuple, torch.Tensor] = weakref.WeakValueDictionary()


def _constant(value: float, like: torch.Tensor) -> torch.Tensor:
    """A tensor of one value everywhere, the same one for all that ask."""
    key = (value, tuple(like.shape), like.dtype, like.device)
    constant = _constants.get(key)
    if constant is None:
        constant = _constants[key] = torch.full_like(like, value)
    return constant
