"""What conversion to GGUF did to a tensor, undone.

Each function takes the tensor as it stands in the file and the model's configuration.  Those that
move whole rows work on blocks as well as on numbers, since a row is whole blocks; they copy the
one tensor they are given.  The others work on numbers, which is how files hold what they apply to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ascend_gguf.architectures.dimensions import size

#: ``(tensor, *tensors beside it, configuration)`` to a tensor.
Transform = Callable[..., torch.Tensor]


def halves_from_pairs(heads: str) -> Transform:
    """Rows of each head from rotary pairs side by side to all firsts, then all seconds.

    ggml's default rotary embedding turns neighbouring rows together; transformers' Llama turns row
    ``i`` with row ``i + head_size / 2``.

    Args:
        heads: the dimension that says how many heads the rows are.
    """

    def undo(rows: torch.Tensor, config: Any) -> torch.Tensor:
        count = size(heads, config)
        pairs = rows.reshape(count, rows.shape[0] // count // 2, 2, *rows.shape[1:])
        return pairs.transpose(1, 2).reshape(rows.shape)

    return undo


def of_parts(rows: str, *undos: Transform | None) -> Transform | None:
    """Of a tensor whose rows are several tensors': what conversion did to each, undone.

    Args:
        rows: the dimensions of the parts' rows.
        undos: of each part.
    """
    if not any(undos):
        return None

    def undo(tensor: torch.Tensor, config: Any) -> torch.Tensor:
        parts = tensor.split([size(words, config) for words in rows.split()])
        return torch.cat(
            [act(part, config) if act else part for part, act in zip(parts, undos, strict=True)]
        )

    return undo


def minus_one(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """The weight of a norm that multiplies by ``1 + weight``, where the file holds the sum."""
    return numbers - 1


def grouped_heads(width: str) -> Transform:
    """Value heads of linear attention from ggml's order to that of the model.

    Several value heads share a key head.  The model has those of one key head side by side; in a
    file the first of every key head come first, then the second ones.

    Args:
        width: the dimension of a head's rows, or ``1``.
    """

    def undo(rows: torch.Tensor, config: Any) -> torch.Tensor:
        keys, values = config.linear_num_key_heads, config.linear_num_value_heads
        tiled = rows.reshape(values // keys, keys, size(width, config), *rows.shape[1:])
        return tiled.transpose(0, 1).reshape(rows.shape)

    return undo


def then(*undos: Transform) -> Transform:
    """Several transforms, one after the other."""

    def undo(tensor: torch.Tensor, config: Any) -> torch.Tensor:
        for act in undos:
            tensor = act(tensor, config)
        return tensor

    return undo


def log_of_minus(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """The logarithm of a decay, where the file holds minus the decay."""
    return (-numbers).log()


def with_channel(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """``[channels, kernel]`` of a convolution by channel as ``[channels, 1, kernel]``."""
    return numbers.unsqueeze(1)
