"""What a linear kernel is: it multiplies with weights in the layouts it names.

A layer has one kernel, and its weight the first of the kernel's layouts that can hold it.  Dense
weights need no kernel of ours: engines have their own.
"""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

import torch

from ascend_gguf.weights.layout import Layout

#: The base of the layouts that a kernel multiplies with.
F = TypeVar("F", bound=Layout)


class LinearKernel(abc.ABC, Generic[F]):
    """``x @ weight.T``, of a weight ``[out, in]``.

    Attributes:
        layouts: what it can multiply with, narrowest first; without ``Dense``.
        others: what it can multiply with as well, which may be quicker on some devices.
    """

    layouts: tuple[type[Layout], ...]
    others: tuple[type[Layout], ...] = ()

    @abc.abstractmethod
    def linear(self, x: torch.Tensor, weight: F, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x [..., in]`` to ``[..., out]``, in the dtype of ``x``."""


class EmbeddingKernel(LinearKernel[F]):
    """Rows of a weight too: for an embedding, which may be the output matrix as well."""

    @abc.abstractmethod
    def rows(self, weight: F, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight, decoded: ids ``[...]`` to ``[..., in]`` of the weight's dtype."""
