"""The table of model architectures."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator
from importlib import import_module

from ascend_gguf.architectures.base import Architecture, Placement, Rename, Target
from ascend_gguf.architectures.fields import Field
from ascend_gguf.architectures.heads import is_reranker
from ascend_gguf.architectures.kinds import check_kind, check_weights, kind_of
from ascend_gguf.architectures.refused import REFUSED, why_refused
from ascend_gguf.reader import GGUFFile

__all__ = [
    "ARCHITECTURES",
    "REFUSED",
    "Architecture",
    "Field",
    "Placement",
    "Rename",
    "Target",
    "architecture_of",
    "check_kind",
    "is_reranker",
]


def _families() -> Iterator[Architecture]:
    for module in pkgutil.iter_modules(__path__):
        family = import_module(f"{__name__}.{module.name}")
        yield from getattr(family, "ARCHITECTURES", ())


#: All architectures, those of each module here; the first that describes a file counts.
ARCHITECTURES: tuple[Architecture, ...] = tuple(_families())


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture of ``file``; a GGUFError lists the known ones if it is none of them."""
    check_kind(file)
    for architecture in ARCHITECTURES:
        if architecture.describes(file):
            check_weights(file)
            return architecture
    problem = "this model architecture is not supported"
    if kind := kind_of(file):
        problem += f": it is {kind}"
    if reason := why_refused(file.architecture):
        problem += f" ({reason})"
    raise file.error(
        problem,
        "general.architecture",
        found=file.architecture,
        expected=", ".join(sorted({a.name for a in ARCHITECTURES})),
        hint="See the list of models in the documentation.",
    )
