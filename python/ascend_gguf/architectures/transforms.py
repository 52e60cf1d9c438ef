"""Undo what conversion to GGUF did to a tensor.

Each function takes the tensor as stored and the model's configuration.  Functions that move whole
rows work on blocks and on decoded values, because a row is whole blocks; they copy the tensor.  The
others work on decoded values; files hold the tensors they apply to unquantized.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ascend_gguf.architectures.dimensions import size

#: ``(tensor, *tensors beside it, configuration)`` to a tensor.
Transform = Callable[..., "torch.Tensor"]


def halves_from_pairs(heads: str) -> Transform:
    """Rows of each head from interleaved RoPE to half-split (NeoX) RoPE.

    ggml's default RoPE rotates neighbouring rows together; transformers' Llama rotates row ``i``
    with row ``i + head_size / 2``.

    Args:
        heads: the dimension with the number of heads.
    """

    def undo(rows: torch.Tensor, config: Any) -> torch.Tensor:
        count = size(heads, config)
        pairs = rows.reshape(count, rows.shape[0] // count // 2, 2, *rows.shape[1:])
        return pairs.transpose(1, 2).reshape(rows.shape)

    return undo


def pairs_from_halves(heads: str) -> Transform:
    """Rows of each head from half-split (NeoX) RoPE to interleaved RoPE, those that it rotates.

    Args:
        heads: the dimension with the number of heads.
    """

    def undo(rows: torch.Tensor, config: Any) -> torch.Tensor:
        of_heads = rows.reshape(size(heads, config), -1, *rows.shape[1:])
        rotary = int(of_heads.shape[1] * config.rope_parameters["partial_rotary_factor"])
        halves = of_heads[:, :rotary].unflatten(1, (2, rotary // 2))
        pairs = halves.transpose(1, 2).flatten(1, 2)
        return torch.cat([pairs, of_heads[:, rotary:]], dim=1).reshape(rows.shape)

    return undo


def of_parts(rows: str, *undos: Transform | None) -> Transform | None:
    """Undo conversion for each part of a merged tensor.

    Args:
        rows: the dimensions of the parts' rows.
        undos: one for each part.
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
    """The weight of a norm that multiplies by ``1 + weight``; the file holds the sum."""
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


def first_rows(rows: str) -> Transform:
    """The first of several parts, where the model has no others."""
    return lambda merged, config: merged[: size(rows, config)].clone()


def apart(rows: str, groups: str) -> Transform:
    """Rows of several parts, of which each group of heads has its own, one part after the other.

    Args:
        rows: the dimensions of the parts' rows.
        groups: the dimension with the number of groups, each of which has as many of a part.
    """

    def undo(mixed: torch.Tensor, config: Any) -> torch.Tensor:
        count = size(groups, config)
        shares = [size(words, config) // count for words in rows.split()]
        parts = mixed.reshape(count, sum(shares), *mixed.shape[1:]).split(shares, dim=1)
        return torch.cat([part.flatten(0, 1) for part in parts])

    return undo


def then(*undos: Transform | None) -> Transform:
    """Several transforms, one after the other; None is none."""

    def undo(tensor: torch.Tensor, config: Any) -> torch.Tensor:
        for act in filter(None, undos):
            tensor = act(tensor, config)
        return tensor

    return undo


def log_of_minus(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """The logarithm of a decay, where the file holds minus the decay."""
    return (-numbers).log()


def with_channel(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """``[channels, kernel]`` of a convolution by channel as ``[channels, 1, kernel]``."""
    return numbers.unsqueeze(1)


def as_row(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """A vector, or a matrix of one row, as a matrix of one row."""
    return numbers.reshape(1, -1)


def flat(numbers: torch.Tensor, config: Any) -> torch.Tensor:
    """A matrix as a vector."""
    return numbers.flatten()
