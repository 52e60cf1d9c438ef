"""Special tokens, which are found in text before pre-tokenization, and stop tokens.

Rules: llama.cpp ``llama_vocab::impl::load``, the special tokens and per-token attributes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from gguf import TokenType
from tokenizers import AddedToken

from ascend_gguf.tokenizer.vocabulary import Vocabulary

#: Names of stop tokens, whatever ids the file has.
_END_OF_GENERATION = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> "
    "<|endoftext|> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> "
    "<turn|> <|tool_response> <\uff5cend\u2581of\u2581sentence\uff5c> [e~["
).split()

#: Fill-in-the-middle tokens of code models: ``fim_KEY_token_id`` -> names, first wins.
_FILL_IN_MARKS = {
    "fim_pre": "<|fim_prefix|> <fim-prefix> <fim_prefix> <\uff5cfim\u2581begin\uff5c> <PRE> "
    "\u2581<PRE> <|code_prefix|> <|prefix|>",
    "fim_suf": "<|fim_suffix|> <fim-suffix> <fim_suffix> <\uff5cfim\u2581hole\uff5c> <SUF> "
    "\u2581<SUF> <|code_suffix|> <|suffix|>",
    "fim_mid": "<|fim_middle|> <fim-middle> <fim_middle> <\uff5cfim\u2581end\uff5c> <MID> "
    "\u2581<MID> <|code_middle|> <|middle|>",
}

#: Separators, after which code models continue with another file: as above.
_FILL_IN_THE_MIDDLE = {
    "fim_pad": "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]",
    "fim_rep": "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>",
    "fim_sep": "<|file_sep|>",
}


def end_of_generation_ids(vocabulary: Vocabulary) -> frozenset[int]:
    """The ids of all stop tokens: eos, eot, eom, and those known by name."""
    ids = vocabulary.ids
    found = {ids[name] for name in _END_OF_GENERATION if name in ids}
    ends = (vocabulary.token_id(f"{key}_token_id") for key in ("eos", "eot", "eom"))
    found |= {number for number in ends if number is not None}
    found |= _fill_in_ids(vocabulary, _FILL_IN_THE_MIDDLE)
    # Harmony and Solar end a message with <|end|>, and a turn with others.
    if {"<|return|>", "<|call|>"} <= ids.keys() or {"<|calls|>", "<|flush|>"} <= ids.keys():
        found.discard(ids.get("<|end|>", -1))
    # In Qwen's and Gemma's vocabularies it is plain HTML.
    if "</s>" in ids and vocabulary.types[ids["</s>"]] == TokenType.CONTROL:
        found.add(ids["</s>"])
    return frozenset(found)


def _fill_in_ids(vocabulary: Vocabulary, names_of: Mapping[str, str]) -> set[int]:
    ids = vocabulary.ids
    found = (
        vocabulary.token_id(
            f"{key}_token_id", next((ids[name] for name in names.split() if name in ids), None)
        )
        for key, names in names_of.items()
    )
    return {number for number in found if number is not None}


def added_tokens(vocabulary: Vocabulary, special: Iterable[int]) -> list[AddedToken]:
    """The tokens to find in text before pre-tokenization, for the ``tokenizers`` library.

    Args:
        special: ids of tokens that are special, whatever type the file gives them.
    """
    types = vocabulary.types.copy()
    # Stop and fill-in-the-middle tokens are control tokens, whatever their type.
    types[[*special, *_fill_in_ids(vocabulary, _FILL_IN_MARKS)]] = TokenType.CONTROL
    wanted = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
    numbers = np.isin(types, wanted).nonzero()[0].tolist()
    texts = {vocabulary.tokens[number] for number in numbers}
    before, after = _eat_spaces(vocabulary, texts)
    return [
        AddedToken(
            token,
            special=bool(types[number] != TokenType.USER_DEFINED),
            normalized=False,
            lstrip=token in before,
            rstrip=token in after,
        )
        for number in numbers
        for token in [vocabulary.tokens[number]]
    ]


def _eat_spaces(vocabulary: Vocabulary, texts: set[str]) -> tuple[set[str], set[str]]:
    """The added tokens that strip the spaces before them, and those that strip after them.

    GGUF has no key for it, so llama.cpp recognizes the models by name.
    """
    name = str(vocabulary.file.metadata.get("general.name", "")).lower()
    if vocabulary.text("pre", "") in ("jina-v2-de", "jina-v2-es", "jina-v2-code"):
        return {"<mask>"}, set()
    if "phi-3" in name or "phi3" in name:
        return set(), texts - {"<unk>", "<s>", "<|endoftext|>"}
    if "modern-bert" in name:
        return {"[MASK]"}, set()
    return set(), set()
