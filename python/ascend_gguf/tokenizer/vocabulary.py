"""The tokens of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from gguf import TokenType

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile

_PREFIX = "tokenizer.ggml."


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a GGUF file, with types and special ids.

    Attributes:
        file: where it comes from.
        tokens: the text of each token, by id; all different.
        types: the ``gguf.TokenType`` of each, whole numbers of shape ``(len(tokens),)``.
    """

    file: GGUFFile
    tokens: list[str] = field(default_factory=list)
    types: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

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
            raise self.error("a token occurs twice", "tokens", found=found)

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
        array = self._array(key)
        if not isinstance(array, list):
            raise self.error("invalid value", key, found=_words(array), expected="strings")
        return array

    def numbers(self, key: str, kinds: str = "iuf", expected: str = "numbers") -> np.ndarray:
        """The array of numbers at ``tokenizer.ggml.KEY``, of the file's type.

        Args:
            kinds: numpy's letters for the kinds of numbers it may have.
            expected: the same in words.
        """
        array = self._array(key)
        if isinstance(array, list) or array.dtype.kind not in kinds:
            raise self.error("invalid value", key, found=_words(array), expected=expected)
        return array

    def error(self, problem: str, key: str, **facts: Any) -> GGUFError:
        """An error about ``tokenizer.ggml.KEY``, to be raised by the caller; as the file's."""
        return self.file.error(problem, _PREFIX + key, **facts)

    def _typed(self, key: str, kind: type, expected: str, default: Any) -> Any:
        value = self.file.metadata.get(_PREFIX + key, default)
        if value is not default and type(value) is not kind:
            raise self.error("invalid value", key, found=f"{value!r:.80}", expected=expected)
        return value

    def _array(self, key: str) -> list[str] | np.ndarray:
        value = self.file.metadata.get(_PREFIX + key)
        if not isinstance(value, list | np.ndarray):
            raise self.error(
                "the array is missing: the file has no tokenizer",
                key,
                hint="Pass another tokenizer with --tokenizer-path, or convert the model again.",
            )
        return value


@lru_cache(maxsize=2)
def read_vocabulary(file: GGUFFile) -> Vocabulary:
    """The vocabulary in ``file``'s metadata; the same object for the same file.

    Raises:
        GGUFError: it is missing or inconsistent.
    """
    empty = Vocabulary(file)
    tokens = empty.strings("tokens")
    _check_text(empty, tokens)
    if "" in tokens:  # as in llama.cpp
        tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    types = np.full(len(tokens), TokenType.NORMAL, np.int32)
    if _PREFIX + "token_type" in file.metadata:
        types = empty.numbers("token_type", "iu", "whole numbers")
    if len(types) < len(tokens):
        raise empty.error(
            "not every token has a type", "token_type", found=len(types), expected=len(tokens)
        )
    vocabulary = replace(empty, tokens=tokens, types=types[: len(tokens)])
    vocabulary.check_distinct()
    return vocabulary


def _check_text(vocabulary: Vocabulary, tokens: list[str]) -> None:
    try:
        "".join(tokens).encode()
    except UnicodeEncodeError as error:
        place = error.start
        for number, token in enumerate(tokens):
            if place < len(token):
                found = f"{token!r:.80} as {number}"
                raise vocabulary.error("a token is not UTF-8", "tokens", found=found) from None
            place -= len(token)


def _words(array: list[str] | np.ndarray) -> str:
    kind = "strings" if isinstance(array, list) else f"numbers of type {array.dtype}"
    return f"{len(array)} {kind}"
