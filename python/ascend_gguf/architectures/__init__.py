"""The table of model architectures."""

from __future__ import annotations

from ascend_gguf.architectures import qwen
from ascend_gguf.architectures.base import Architecture, Rename
from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile

__all__ = ["ARCHITECTURES", "Architecture", "Rename", "architecture_of"]

#: ``general.architecture`` to what is known of it.
ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in qwen.ARCHITECTURES}


def architecture_of(file: GGUFFile) -> Architecture:
    """The architecture of ``file``; GGUFError listing the known ones if it is not among them."""
    try:
        return ARCHITECTURES[file.architecture]
    except KeyError:
        raise GGUFError(
            "this model architecture is not supported",
            file=file.path,
            key="general.architecture",
            found=file.architecture,
            expected=", ".join(sorted(ARCHITECTURES)),
            hint="See the list of models in the documentation.",
        ) from None
