"""Byte-level BPE (GPT-2): bytes written as printable characters, merged by rank."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from ascend_gguf.tokenizer.pre_tokenizers import PreTokenizer
from ascend_gguf.tokenizer.vocabulary import Vocabulary

_NOT_A_BYTE = "\ufdd0"  # a Unicode noncharacter, which occurs in no text and no token


def byte_level_bpe(
    vocabulary: Vocabulary, rule: PreTokenizer, added: list[AddedToken]
) -> Tokenizer:
    """The tokenizer of a ``gpt2`` vocabulary.

    Args:
        added: its added tokens, which are stored as text, not as bytes.

    Raises:
        GGUFError: the merges are missing, or do not fit the tokens.
    """
    model = merged_bpe(vocabulary, read_merges(vocabulary), ignore_merges=rule.ignore_merges)
    tokenizer = Tokenizer(model)
    words = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*words, to_bytes, *_without_lacking(vocabulary)]
    )
    tokenizer.decoder = _decoder(token.content for token in added)
    tokenizer.add_tokens(added)
    return tokenizer


def _without_lacking(vocabulary: Vocabulary) -> list[pre_tokenizers.PreTokenizer]:
    """Steps that drop bytes without a token.

    The library alone would merge their neighbours as if nothing were between.
    """
    lacking = [
        letter for letter in pre_tokenizers.ByteLevel.alphabet() if letter not in vocabulary.ids
    ]
    if not lacking:
        return []
    letters = "".join(map(re.escape, sorted(lacking)))
    return [pre_tokenizers.Split(Regex(f"[{letters}]"), "removed")]


def _decoder(added: Iterable[str]) -> decoders.Decoder:
    """Bytes to text, but added tokens unchanged.

    DeepSeek has added tokens such as ``\u00fc`` whose letters are also how bytes are written. A
    token that holds anything else than such letters is left alone, so they get a mark that does.
    """
    letters = set(pre_tokenizers.ByteLevel.alphabet())
    like_bytes = [text for text in added if not text.isascii() and letters.issuperset(text)]
    if not like_bytes:
        return decoders.ByteLevel()
    alternatives = "|".join(map(re.escape, like_bytes))
    mark = decoders.Replace(Regex(rf"\A(?=(?:{alternatives})\z)"), _NOT_A_BYTE)
    return decoders.Sequence([mark, decoders.ByteLevel(), decoders.Replace(_NOT_A_BYTE, "")])


def read_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The pairs of ``tokenizer.ggml.merges``, by rank."""
    merges = vocabulary.strings("merges")
    # A space separates the two; the left side may itself begin with one.
    return [
        (merge[: (cut := merge.find(" ", 1))], merge[cut + 1 :])
        if merge[:1] == " "
        else merge.partition(" ")[::2]
        for merge in merges
    ]


def merged_bpe(vocabulary: Vocabulary, merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    """The ``tokenizers`` library's BPE over the vocabulary.

    Raises:
        GGUFError: a merge uses or gives an unknown token.
    """
    try:
        return models.BPE(vocab=vocabulary.ids, merges=merges, **options)
    except Exception as error:  # the library raises the bare class
        raise vocabulary.error(
            "the merges do not fit the tokens", "merges", found=f"{error}"[:120]
        ) from None
