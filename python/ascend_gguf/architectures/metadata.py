"""Checked numbers from a file's metadata."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from ascend_gguf.errors import CONVERT_AGAIN
from ascend_gguf.reader import GGUFFile

#: Attributes of a configuration, by name.
Attributes = dict[str, Any]

_Function = TypeVar("_Function", bound=Callable)

_ONE_FOR_ALL = "SGLang's models have one value for all layers: this file cannot be served."

_KINDS = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}


def reads(*keys: str) -> Callable[[_Function], _Function]:
    """Say which keys a function of an architecture follows, beside its fields (``obeyed``)."""

    def mark(function: _Function) -> _Function:
        vars(function)["reads"] = frozenset(keys)
        return function

    return mark


def number(
    file: GGUFFile, key: str, kind: type = int, least: float = 1, required: bool = False
) -> Any:
    """The value at ``key``, of the Python type ``kind``; None if the file lacks the key.

    An array with the same value for each layer counts as that value.

    Args:
        key: below ``general.architecture`` unless it starts with ``tokenizer.``.
        kind: int, float (which accepts integers too) or bool.
        least: the smallest valid number.
        required: the file must have the key.

    Raises:
        GGUFError: the value has the wrong type, is too small, differs between layers, or is
            missing and required.
    """
    if required:
        file.arch_field(key)  # raises where it is missing
    value = file.metadata.get(file.key(key))
    if value is None:
        return None
    if isinstance(value, np.ndarray) and not key.startswith("tokenizer."):
        value = _of_all_layers(file, key, value)
    accepted, name = _KINDS[kind]
    is_kind = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if not is_kind or (kind is not bool and not least <= value < math.inf):
        limit = "" if kind is bool else f" of at least {least}"
        raise file.error(
            "invalid value",
            key,
            found=f"{value!r:.80}",
            expected=f"{name}{limit}, one for all layers",
        )
    return kind(value)


def of_each_layer(
    file: GGUFFile, key: str, least: int = 1, required: bool = False
) -> int | list[int] | None:
    """As :func:`number`, of a whole number that layers may differ in: then that of each.

    Raises:
        GGUFError: as :func:`number`, but for values that differ.
    """
    value = file.metadata.get(file.key(key))
    if not isinstance(value, np.ndarray):
        return number(file, key, least=least, required=required)
    values, layers = value.tolist(), file.metadata.get(file.key("block_count"))
    if len(values) != layers or not all(type(one) is int and one >= least for one in values):
        expected = f"a whole number of at least {least} for each of {layers} layers"
        raise file.error("invalid values", key, found=f"{values!s:.80}", expected=expected)
    return values if len(set(values)) > 1 else values[0]


def _of_all_layers(file: GGUFFile, key: str, values: np.ndarray) -> Any:
    layers = file.metadata.get(file.key("block_count"))
    whole = isinstance(layers, int) and len(values) == layers
    distinct = set(values.tolist())
    if whole and len(distinct) == 1:
        return distinct.pop()
    raise file.error(
        "the value differs between layers" if whole else "the array has the wrong length",
        key,
        found=f"{len(values)} values: {values.tolist()[:8]}",
        expected=f"{layers if whole else 'block_count'} equal values, or one for all layers",
        hint=_ONE_FOR_ALL if whole else CONVERT_AGAIN,
    )
