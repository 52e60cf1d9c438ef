"""Numbers of a file's metadata, checked."""

from __future__ import annotations

from typing import Any

from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile

_KINDS = {
    int: ((int,), "a whole number"),
    float: ((int, float), "a number"),
    bool: ((bool,), "true or false"),
}


def number(
    file: GGUFFile, key: str, kind: type = int, least: float = 1, required: bool = False
) -> Any:
    """The value at ``key``, of the Python type ``kind``; None where the file lacks the key.

    Args:
        key: below ``general.architecture`` unless it starts with ``tokenizer.``.
        kind: int, float (which takes whole numbers too) or bool.
        least: the least number that makes sense.
        required: of a key that the file must have.

    Raises:
        GGUFError: the value is of another kind, or less, or missing where it is required.
    """
    if required:
        file.arch_field(key)  # raises where it is missing
    if not key.startswith("tokenizer."):
        key = f"{file.architecture}.{key}"
    value = file.metadata.get(key)
    if value is None:
        return None
    accepted, name = _KINDS[kind]
    is_kind = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    if not is_kind or (kind is not bool and not value >= least):
        limit = "" if kind is bool else f" of at least {least}"
        raise GGUFError(
            "the value makes no sense",
            file=file.path,
            key=key,
            found=f"{value!r:.80}",
            expected=f"{name}{limit}, one for all layers",
            hint=CONVERT_AGAIN,
        )
    return kind(value)
