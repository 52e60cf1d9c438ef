"""Unigram, the tokenizer of T5 and XLM-RoBERTa: the pieces of a text whose scores add up to most.

Source of the rules: llama.cpp ``llm_tokenizer_ugm_session``.
"""

from __future__ import annotations

import numpy as np
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from ascend_gguf.tokenizer.sentencepiece import scores_of
from ascend_gguf.tokenizer.vocabulary import Vocabulary

_SPACE = "\u2581"

#: Ids of a file that has none (llama.cpp ``llama_vocab::impl::load``).
IDS = {"eos_token": 1, "unk_token": 2, "pad_token": 0}

_CHARSMAP = "precompiled_charsmap"


def unigram(vocabulary: Vocabulary, added: list[AddedToken]) -> Tokenizer:
    """The tokenizer of a ``t5`` vocabulary.

    Raises:
        GGUFError: scores or the unknown token are missing, or the table of characters is damaged.
    """
    unknown = vocabulary.token_id("unknown_token_id", IDS["unk_token"])
    if unknown is None:
        raise vocabulary.error(
            "the file does not name this token", "unknown_token_id", expected="the id of a token"
        )
    tokenizer = Tokenizer(models.Unigram(_pieces(vocabulary), unknown, False))
    tokenizer.normalizer = normalizers.Sequence([*_characters(vocabulary), *_spaces(vocabulary)])
    tokenizer.decoder = decoders.Metaspace(_SPACE, "always")
    tokenizer.add_tokens(added)
    return tokenizer


def _pieces(vocabulary: Vocabulary) -> list[tuple[str, float]]:
    """Tokens and scores by which an unknown character costs 10 more than any normal token.

    The library looks for the least score among all, where padding has -10,000.  So padding gets
    another, and a space before its name: no text has one when it is cut.
    """
    scores = scores_of(vocabulary)
    normal = vocabulary.types == TokenType.NORMAL
    if not np.isfinite(scores).all() or not normal.any():
        raise vocabulary.error(
            "no normal token has a score, or a score is not finite",
            "scores",
            found=f"{int(normal.sum())} normal tokens",
            expected="a finite number for each token",
        )
    scores = np.maximum(scores, scores[normal].min())
    tokens = vocabulary.tokens.copy()
    for number in (vocabulary.types == TokenType.UNUSED).nonzero()[0].tolist():
        tokens[number] = f" {tokens[number]}"
    return list(zip(tokens, scores.tolist(), strict=True))


def _spaces(vocabulary: Vocabulary) -> list[normalizers.Normalizer]:
    merged = vocabulary.flag("remove_extra_whitespaces", False)
    prefix = merged or vocabulary.flag("add_space_prefix", True)
    return [
        *([normalizers.Replace(Regex("^ +| +$"), "")] * merged),
        *([normalizers.Prepend(_SPACE)] * prefix),
        normalizers.Replace(Regex(" +") if merged else " ", _SPACE),
    ]


def _characters(vocabulary: Vocabulary) -> list[normalizers.Normalizer]:
    """What a character is replaced by before all else, as SentencePiece compiled it."""
    if f"tokenizer.ggml.{_CHARSMAP}" not in vocabulary.file.metadata:
        return []
    table = vocabulary.numbers(_CHARSMAP)
    raw = table.astype(np.uint8).tobytes() if table.dtype.itemsize == 1 else b""
    if not _is_sound(raw):
        raise vocabulary.error(
            "the table of characters is damaged",
            _CHARSMAP,
            found=f"{len(table)} numbers of type {table.dtype}",
            expected="a double array of characters, then their replacements in UTF-8",
        )
    return [normalizers.Precompiled(raw)]


def _is_sound(raw: bytes) -> bool:
    """True if no text leads out of the table: the library looks without asking.

    Four bytes of size, that many of units (Darts-clone's double array), and texts that end with
    zero.  A unit has its label in bits 0-7 and, if it is a text's place, bit 31; else where its
    children are, bit 8 if a text ends there, and bit 9 if the place counts in 256.
    """
    size = int.from_bytes(raw[:4], "little")
    if size % 4 or not 1024 <= size < len(raw) - 4 or raw[-1]:
        return False
    units = np.frombuffer(raw, "<u4", size // 4, offset=4).astype(np.int64)
    texts = np.frombuffer(raw, np.uint8, offset=4 + size)
    try:
        raw[4 + size :].decode()
    except UnicodeDecodeError:
        return False
    inner = units >> 31 == 0
    children = (np.arange(len(units)) ^ ((units >> 10) << ((units & 512) >> 6)))[inner]
    if ((children | 255) >= len(units)).any():
        return False
    places = units[children[(units[inner] >> 8) & 1 == 1]] & 0x7FFFFFFF
    if (places >= len(texts)).any():
        return False
    return bool((texts[places] & 0xC0 != 0x80).all())  # no place is inside a character
