"""What a kernel is: it multiplies with weights in the forms it names.

A layer on a device has one kernel, and its weight the first of the kernel's forms that can hold
it.  Dense weights are not a kernel's business: engines have code of their own for them.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Generic, TypeVar

import torch

from ascend_gguf.weights.layout import Form

#: The base of the forms that a kernel multiplies with.
F = TypeVar("F", bound=Form)


class LinearKernel(abc.ABC, Generic[F]):
    """``x @ weight.T`` and rows of ``weight``, ``[out, in]``.

    Attributes:
        forms: what it can multiply with, narrowest first; without ``Dense``.
    """

    forms: ClassVar[tuple[type[Form], ...]]

    @abc.abstractmethod
    def linear(self, x: torch.Tensor, weight: F, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x [..., in]`` to ``[..., out]``, in the dtype of ``x``."""

    @abc.abstractmethod
    def rows(self, weight: F, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, decoded: ids ``[...]`` to ``[..., in]`` of the weight's dtype."""
