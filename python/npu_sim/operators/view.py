"""The tensors an operator is handed: CPU views of device memory, with the storage format torch_npu
tagged them with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .rules import FORMAT_ND, FORMAT_NZ, OperatorMissing, is_transposed


@dataclass
class View:
    """One tensor argument.

    t: a CPU tensor over the device's memory, with the caller's shape, strides and dtype; writing
    into it writes the device. format: aclFormat of the storage; FRACTAL_NZ (29) is a tag here, the
    memory stays in ND order.
    """

    t: torch.Tensor
    format: int = FORMAT_ND

    @property
    def nz(self) -> bool:
        return self.format == FORMAT_NZ


def view(argument) -> View | None:
    """A View of whatever the dispatch passes: None, a View, a torch tensor (tests), or an AclTensor
    with `.t` and `.fmt`.
    """
    if argument is None or isinstance(argument, View):
        return argument
    if getattr(argument, "dtype", None) == "int4":
        raise OperatorMissing(
            "aclTensor of int4", "int4 is simulated as production code passes it: eight in an int32"
        )
    if isinstance(argument, torch.Tensor):
        return View(argument)
    return View(argument.t, getattr(argument, "fmt", FORMAT_ND))


def viewed(function: Callable) -> Callable:
    """``function``, which is given a View of each tensor among its arguments."""

    @functools.wraps(function)
    def call(*arguments, **named):
        seen = {name: _seen(value) for name, value in named.items()}
        return function(*map(_seen, arguments), **seen)

    return call


def _seen(argument):
    return view(argument) if hasattr(type(argument), "t") else argument


def tensor(argument) -> torch.Tensor | None:
    """The CPU tensor behind an argument, or None."""
    v = view(argument)
    return None if v is None else v.t


def views(arguments) -> list[View]:
    """The Views of a tensor list;

    CANN takes an absent list, an empty one and one holding an empty 1-D tensor as the same.
    """
    found = [view(a) for a in arguments or [] if a is not None]
    if len(found) == 1 and found[0].t.dim() == 1 and found[0].t.numel() == 0:
        return []
    return found


def int4_of(packed: torch.Tensor) -> torch.Tensor:
    """The int4 values in an int32 tensor, as int8: eight in each, low nibble first, along the
    dimension that is contiguous.

    (.., K, N/8) contiguous gives (.., K, N); a transposed view (.., K/8, N) gives (.., K, N).
    """
    transposed = is_transposed(packed)
    t = (packed.transpose(-1, -2) if transposed else packed).contiguous()
    bytes_ = t.view(torch.int8).view(*t.shape, 4)
    low, high = (bytes_ << 4) >> 4, bytes_ >> 4  # int8 shifts are arithmetic: they extend the sign
    values = torch.stack((low, high), dim=-1).flatten(-3)
    return values.transpose(-1, -2) if transposed else values


def int4_pack(values: torch.Tensor) -> torch.Tensor:
    """int32 values in -8..7, last dimension a multiple of 8, as int32 holding eight each, low
    nibble first.
    """
    nibbles = (values & 15).reshape(*values.shape[:-1], -1, 8).to(torch.int64)
    words = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    return words.to(torch.int32)  # wraps: the top nibble may set the sign
