"""What a small model of an architecture is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from gguf import GGMLQuantizationType as Type

#: ``(name, tensor, configuration)`` to what conversion makes of it: names as the name map takes
#: them, or ``=NAME`` for a name of the file.
Conversion = Callable[[str, torch.Tensor, Any], Iterable[tuple[str, torch.Tensor]]]


def unchanged(name: str, tensor: torch.Tensor, config: Any) -> Iterable[tuple[str, torch.Tensor]]:
    return [(name, tensor)]


@dataclass(frozen=True)
class Tiny:
    """A small model of an architecture.

    Args:
        arch: ``general.architecture``.
        model_type: transformers' ``model_type``.
        sizes: of its configuration, beside those of ``_SIZES``.
        metadata: keys that the architecture has beside the common ones, from the configuration.
        convert: what conversion does to a tensor.
        joined: tensors that checkpoints of the architecture have as one: the end of its name to
            the ends of the names that transformers has for its rows.
        names: an architecture with tensors of the same names, where gguf-py does not know this one.
        numbers: keys, whole ones, that conversion makes of the checkpoint's tensors.
        extra: tensors that conversion makes from the configuration.
        types: type of matrices, before those of ``_TYPES``, by the end of their names.
        npu_dtype: in which an NPU computes it.
        twin: it is served by the model of another row, or cut in the same way; that one is computed
            on ranks and stages, and this one where ``ALL_PEERS`` is set.
        refused: device ("cpu" or "npu") to why the engine does not run it there.
    """

    arch: str
    model_type: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    metadata: Callable[[Any], Mapping[str, Any]] = lambda config: {}
    convert: Conversion = unchanged
    joined: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    extra: Callable[[Any], Mapping[str, torch.Tensor]] = lambda config: {}
    names: str = ""
    numbers: Callable[[Mapping[str, torch.Tensor]], Mapping[str, list[float]]] = lambda tensors: {}
    types: Mapping[str, Type] = field(default_factory=dict)
    npu_dtype: str = "float16"
    twin: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
