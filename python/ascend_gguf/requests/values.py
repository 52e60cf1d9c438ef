"""Checks of single values: each returns the value, or raises with the field and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from numbers import Integral, Real
from typing import Any

#: Largest integer of the engine's 32-bit tensors.
INT32 = 2**31 - 1

_LONGEST_SHOWN = 60


class RequestError(ValueError):
    """A request that is refused: ``FIELD: PROBLEM (found F, allowed A)``; HTTP status 400."""

    def __init__(
        self, field: str, found: object, allowed: str, problem: str = "invalid value"
    ) -> None:
        super().__init__(f"{field}: {problem} (found {shown(found)}, allowed: {allowed})")
        self.field = field


def shown(value: object) -> str:
    """``repr`` of a value, cut to a readable length; a long one is never built whole."""
    if isinstance(value, (list, tuple, dict, set)) and len(value) > 8:
        return f"{type(value).__name__} of {len(value)}"
    if isinstance(value, (str, bytes)) and len(value) > _LONGEST_SHOWN:
        return f"{value[:_LONGEST_SHOWN]!r}... ({len(value)} characters)"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"
    try:
        text = ascii(value)
    except RecursionError:
        return f"{type(value).__name__}, nested deeply"
    return text if len(text) <= 2 * _LONGEST_SHOWN else f"{text[: 2 * _LONGEST_SHOWN]}..."


def whole_number(field: str, value: Any, low: int, high: int, also: int | None = None) -> int:
    """An integer in ``[low, high]``, or ``also``; accepts 4.0, not True."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        value = int(value)
        if low <= value <= high or value == also:
            return value
    extra = "" if also is None else f" or {also}"
    raise RequestError(field, value, f"whole numbers from {low} to {high}{extra}")


def number(field: str, value: Any, low: float, high: float, above: bool = False) -> Real:
    """A number in ``[low, high]``, or in ``(low, high]`` with ``above``; not NaN."""
    if isinstance(value, Real) and not isinstance(value, bool):
        try:
            found = float(value)
        except OverflowError:
            found = math.inf
        if low <= found <= high and not (above and found == low):
            return value
    start = f"above {low:g}, up to" if above else f"from {low:g} to"
    raise RequestError(field, value, f"numbers {start} {high:g}")


def flag(field: str, value: Any) -> bool:
    """True or False."""
    if isinstance(value, bool):
        return value
    raise RequestError(field, value, "true or false")


def text(field: str, value: Any, longest: int | None = None) -> str:
    """A string that can be encoded (half of a surrogate pair cannot)."""
    if not isinstance(value, str):
        raise RequestError(field, value, "a string")
    if longest is not None and len(value) > longest:
        raise RequestError(field, value, f"at most {longest} characters", "too long")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = value[error.start : error.end]
        raise RequestError(field, found, "valid Unicode", "not Unicode") from None
    return value


def one_of(field: str, value: Any, names: Collection[str]) -> str:
    """One of ``names``."""
    if isinstance(value, str) and value in names:
        return value
    raise RequestError(field, value, ", ".join(names))


def token_ids(field: str, value: Any, vocab_size: int) -> None:
    """A list of token ids of the model."""
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, dict)):
        raise RequestError(field, value, "a list of token ids")
    for token in value:
        # Nearly all are of this type, which is quick to ask for.
        is_whole = type(token) is int or (
            isinstance(token, Integral) and not isinstance(token, bool)
        )
        if not is_whole or not 0 <= token < vocab_size:
            allowed = f"token ids from 0 to {vocab_size - 1}"
            raise RequestError(field, token, allowed, "not a token of this model")
