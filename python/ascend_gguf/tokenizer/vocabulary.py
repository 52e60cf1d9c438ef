"""The tokens of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from ascend_gguf.errors import CONVERT_AGAIN, GGUFError
from ascend_gguf.reader import GGUFFile

_PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type`` (gguf ``TokenType``)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file, with types and special ids.

    Attributes:
        file: where it comes from.
        tokens: the text of each token, by id; all different.
        types: the :class:`TokenType` of each, int32 of shape ``(len(tokens),)``.
    """

    file: GGUFFile
    tokens: list[str]
    types: np.ndarray

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token text to id."""
        return dict(zip(self.tokens, range(len(self.tokens)), strict=True))

    def check_distinct(self) -> None:
        """Raises GGUFError if two tokens have the same text."""
        if len(self.ids) < len(self.tokens):
            twice = next(i for i, token in enumerate(self.tokens) if self.ids[token] != i)
            token = self.tokens[twice]
            found = f"{token!r:.80} as {twice} and {self.ids[token]}"
            raise self.error("a token occurs twice", "tokens", found)

    def text(self, key: str, default: str | None = None) -> str | None:
        """The string at ``tokenizer.ggml.KEY``."""
        return self._typed(key, str, "a string", default)

    def flag(self, key: str, default: bool) -> bool:
        """The boolean at ``tokenizer.ggml.KEY``."""
        return self._typed(key, bool, "true or false", default)

    def token_id(self, key: str, default: int | None = None) -> int | None:
        """The token id at ``tokenizer.ggml.KEY``, or ``default``; None if there is no such token.

        An id outside the vocabulary counts as missing: llama.cpp then uses the default.
        """
        value = self._typed(key, int, "a token id", default)
        for candidate in (value, default):
            if candidate is not None and 0 <= candidate < len(self.tokens):
                return candidate
        return None

    def strings(self, key: str) -> list[str]:
        """The array of strings at ``tokenizer.ggml.KEY``."""
        return _strings(self.file, key)

    def numbers(self, key: str) -> np.ndarray:
        """The array of numbers at ``tokenizer.ggml.KEY``, of the file's type."""
        return _numbers(self.file, key, "iuf", "numbers")

    def error(
        self,
        problem: str,
        key: str,
        found: object = None,
        expected: object = None,
        hint: str = CONVERT_AGAIN,
    ) -> GGUFError:
        """An error about ``tokenizer.ggml.KEY``, to be raised by the caller."""
        return _error(self.file, key, problem, found, expected, hint)

    def _typed(self, key: str, kind: type, expected: str, default: Any) -> Any:
        value = self.file.metadata.get(_PREFIX + key, default)
        if value is not default and type(value) is not kind:
            raise self.error("invalid value", key, found=f"{value!r:.80}", expected=expected)
        return value


@lru_cache(maxsize=2)
def read_vocabulary(file: GGUFFile) -> Vocabulary:
    """The vocabulary in ``file``'s metadata; the same object for the same file.

    Raises:
        GGUFError: it is missing or inconsistent.
    """
    tokens = _strings(file, "tokens")
    _check_text(file, tokens)
    if "" in tokens:  # as in llama.cpp
        tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    if _PREFIX + "token_type" in file.metadata:
        types = _numbers(file, "token_type", "iu", "whole numbers")
    else:
        types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    if len(types) < len(tokens):
        raise _error(
            file,
            "token_type",
            "not every token has a type",
            found=len(types),
            expected=len(tokens),
        )
    vocabulary = Vocabulary(file, tokens, np.asarray(types[: len(tokens)]))
    vocabulary.check_distinct()
    return vocabulary


def _check_text(file: GGUFFile, tokens: list[str]) -> None:
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        place = error.start
        for number, token in enumerate(tokens):
            if place < len(token):
                raise _error(
                    file, "tokens", "a token is not UTF-8", found=f"{token!r:.80} as {number}"
                ) from None
            place -= len(token)


def _array(file: GGUFFile, key: str) -> Any:
    value = file.metadata.get(_PREFIX + key)
    if not isinstance(value, list | np.ndarray):
        raise _error(
            file,
            key,
            "the array is missing: the file has no tokenizer",
            hint="Pass another tokenizer with --tokenizer-path, or convert the model again.",
        )
    return value


def _strings(file: GGUFFile, key: str) -> list[str]:
    array = _array(file, key)
    if not isinstance(array, list):
        raise _error(file, key, "invalid value", found=_words(array), expected="strings")
    return array


def _numbers(file: GGUFFile, key: str, kinds: str, expected: str) -> np.ndarray:
    array = _array(file, key)
    if isinstance(array, list) or array.dtype.kind not in kinds:
        raise _error(file, key, "invalid value", found=_words(array), expected=expected)
    return array


def _words(array: list[str] | np.ndarray) -> str:
    kind = "strings" if isinstance(array, list) else f"numbers of type {array.dtype}"
    return f"{len(array)} {kind}"


def _error(
    file: GGUFFile,
    key: str,
    problem: str,
    found: object = None,
    expected: object = None,
    hint: str = CONVERT_AGAIN,
) -> GGUFError:
    return GGUFError(
        problem,
        file=file.files[0],
        key=_PREFIX + key,
        found=found,
        expected=expected,
        hint=hint,
    )
