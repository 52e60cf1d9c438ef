"""Where characters begin and end among token ids: a token may be a part of a character."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LONGEST = 4  # bytes of a character


class TokenBytes:
    """The bytes of tokens that are not whole characters.

    Args:
        tokenizer: of :func:`ascend_gguf.tokenizer.load_tokenizer`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        from transformers.convert_slow_tokenizer import bytes_to_unicode

        self._tokenizer = tokenizer
        self._added = frozenset(tokenizer.added_tokens_decoder)
        #: SentencePiece decodes a run of byte tokens as a whole: all of it or nothing.
        self.all_or_nothing: bool = tokenizer.backend_tokenizer.model.byte_fallback
        self._written = (
            {byte: f"<0x{byte:02X}>" for byte in range(256)}
            if self.all_or_nothing
            else bytes_to_unicode()
        )
        self._bytes = {letter: byte for byte, letter in self._written.items()}

    def of(self, number: int) -> bytes | None:
        """The bytes of a token; None if it is text and not bytes."""
        token = None if number in self._added else self._tokenizer.convert_ids_to_tokens(number)
        if not isinstance(token, str):
            return None
        try:
            return bytes(self._bytes[part] for part in ([token] if self.all_or_nothing else token))
        except KeyError:
            return None

    def ids(self, data: bytes) -> list[int] | None:
        """A token for each byte; None if the vocabulary lacks one."""
        number_of = self._tokenizer.backend_tokenizer.token_to_id
        found = [number_of(self._written[byte]) for byte in data]
        known = [number for number in found if number is not None]
        return known if len(known) == len(data) else None

    def continues(self, number: int) -> bool:
        """True if the token begins inside a character."""
        data = self.of(number) or b"\0"
        return 0x80 <= data[0] < 0xC0


def split_at_character(
    prompt: Sequence[int], answer: Sequence[int], tokens: TokenBytes
) -> tuple[list[int], list[int]]:
    """The end of a prompt and its answer, split between characters.

    A character that begins in the prompt and ends in the answer belongs to the answer.  It is
    dropped if the answer does not continue it.  So are bytes of an earlier character at the start
    of the given prompt tokens.

    Args:
        prompt: the last tokens of the prompt.
        answer: what follows.

    Returns:
        Both, to be decoded.  Tokens may be replaced by others of the same bytes.
    """
    prompt, answer = list(prompt), list(answer)
    while tokens.all_or_nothing and prompt and tokens.continues(prompt[0]):
        del prompt[0]
    data, count = b"", 0
    while count < len(prompt) and len(data) < _LONGEST:
        found = tokens.of(prompt[-1 - count])
        if found is None:
            break
        data, count = found + data, count + 1
        begun = _begun(data)
        if begun:
            before = tokens.ids(data[: len(data) - len(begun)])
            inside = tokens.ids(begun)
            if before is None or inside is None:
                break
            goes_on = bool(answer) and tokens.continues(answer[0])
            return prompt[:-count] + before, (inside if goes_on else []) + answer
    return prompt, answer


def _begun(data: bytes) -> bytes:
    """The bytes of an incomplete character at the end of ``data``."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    decoder.decode(data)
    return decoder.getstate()[0]
