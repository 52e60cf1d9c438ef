"""WordPiece, the tokenizer of BERT.

In a file a token that begins a word has U+2581 before it, and one inside of a word nothing; BERT's
own vocabulary marks the latter with ``##`` (llama.cpp's ``BertModel.set_vocab``).
"""

from __future__ import annotations

from dataclasses import replace

from gguf import TokenType
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from ascend_gguf.tokenizer.vocabulary import Vocabulary

_START = "\u2581"

#: Ids of a file that has none (llama.cpp ``llama_vocab::impl::load``).
IDS = {"bos": 101, "unknown": 100, "seperator": 102}  # the format spells it so

#: No word is longer: llama.cpp has no limit, where BERT's own is 100 characters.
_MOST_CHARACTERS = 1 << 20


def wordpiece(vocabulary: Vocabulary, added: list[AddedToken]) -> Tokenizer:
    """The tokenizer of a ``bert`` vocabulary: a text stands between ``[CLS]`` and ``[SEP]``.

    Args:
        added: its added tokens, which are stored without a mark.

    Raises:
        GGUFError: the file lacks one of the tokens that stand for something, or two are the same.
    """
    start, unknown, end = (_special(vocabulary, name) for name in IDS)
    own = replace(vocabulary, tokens=_own_names(vocabulary))
    own.check_distinct()
    names = own.tokens
    lowercase = vocabulary.flag("normalizer.lowercase", True)
    model = models.WordPiece(
        vocab=own.ids,
        unk_token=names[unknown],
        max_input_chars_per_word=_MOST_CHARACTERS,
        continuing_subword_prefix="##",
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=vocabulary.flag("normalizer.strip_accents", lowercase)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.add_tokens(added)
    tokenizer.post_processor = TemplateProcessing(
        single="start $A end",
        pair="start $A end $B:1 end:1",
        special_tokens=[
            {"id": place, "ids": [number], "tokens": [names[number]]}
            for place, number in (("start", start), ("end", end))
        ],
    )
    return tokenizer


def _special(vocabulary: Vocabulary, name: str) -> int:
    number = vocabulary.token_id(f"{name}_token_id", IDS[name])
    if number is None:
        raise vocabulary.error(
            "the file does not name this token", f"{name}_token_id", expected="the id of a token"
        )
    return number


def _own_names(vocabulary: Vocabulary) -> list[str]:
    """The tokens as BERT has them; as they are where conversion left them alone."""
    return [
        token if kind != TokenType.NORMAL
        else token[1:] if token.startswith(_START)
        else f"##{token}"
        for token, kind in zip(vocabulary.tokens, vocabulary.types, strict=True)
    ]  # fmt: skip
