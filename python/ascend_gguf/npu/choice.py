"""How a model's weights are held: what the user asks for, and what the file suggests."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ascend_gguf.npu.groups import GROUP
from ascend_gguf.reader import open_gguf

#: Tensors with a row for each token of the vocabulary.
_VOCABULARY = ("token_embd.", "output.", "per_layer_token_embd.")


@dataclass(frozen=True)
class Choice:
    """How a model's weights are held: the loader's options, and what the file suggests.

    Attributes:
        weights: ``auto``, ``packed``, ``int8`` or ``dense``.
        requantizes: whether types with a scale for 16 weights may be rounded to new codes in a
            linear layer, for one operator less.
        wide_planes: whether a matrix of 8 bits is two planes of 4, for one operator more: a product
            of a few inputs is quicker then.
    """

    weights: str = "auto"
    requantizes: bool = False
    wide_planes: bool = False


def choose(
    options: Mapping[str, Any], path: str | os.PathLike, wide_planes: bool = False
) -> Choice:
    """The choice that the options of ``--model-loader-extra-config`` and the file ask for."""
    weights = options.get("weights", "auto")
    # Types with a scale for 16 weights, mostly Q6_K, are a small part of most files, and may lose a
    # little for speed.  Who took a file that is mostly of them wants them exact.  A vocabulary,
    # which may be half of a small model, stays exact in any case, and says nothing of the layers.
    sizes = [
        (tensor.nbytes, tensor.type.codes)
        for name, tensor in open_gguf(path).tensors.items()
        if tensor.type.codes is not None and not name.startswith(_VOCABULARY)
    ]
    fine = sum(nbytes for nbytes, codes in sizes if codes.group < GROUP)
    requantizes = weights == "auto" and 2 * fine < sum(nbytes for nbytes, _ in sizes)
    return Choice(weights, requantizes, wide_planes)
