"""SentencePiece BPE: spaces are written ``\u2581``, what is no token falls back to bytes.

Source of the rules: llama.cpp ``llm_tokenizer_spm_session`` (merge the pair that makes the token
of the highest score, leftmost first) and ``LLAMA_VOCAB_PRE_TYPE_GEMMA4`` (merges by rank).
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

from ascend_gguf.tokenizer.bpe import merged_bpe, read_merges
from ascend_gguf.tokenizer.vocabulary import Vocabulary

_SPACE = "\u2581"

#: Names in ``tokenizer.ggml.pre`` of vocabularies whose merges are over text, not over bytes.
RAW_BPE = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")


def sentencepiece(vocabulary: Vocabulary, added: Iterable[AddedToken]) -> Tokenizer:
    """The tokenizer of a ``llama`` vocabulary.

    Raises:
        GGUFError: there are no scores, or not one for each token.
    """
    tokenizer = Tokenizer(_model(vocabulary, merges_by_score(vocabulary)))
    prefix = vocabulary.flag("add_space_prefix", True)
    # Applied to each stretch between added tokens, as llama.cpp does.
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend(_SPACE)] * prefix + [normalizers.Replace(" ", _SPACE)]
    )
    tokenizer.decoder = _decoder(strip=prefix)
    tokenizer.add_tokens(added)
    return tokenizer


def raw_bpe(vocabulary: Vocabulary, added: Iterable[AddedToken]) -> Tokenizer:
    """The tokenizer of a vocabulary that has its merges in the file (:data:`RAW_BPE`)."""
    tokenizer = Tokenizer(_model(vocabulary, read_merges(vocabulary)))
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    tokenizer.decoder = _decoder(strip=False)
    # No merge makes a run of newlines.
    runs = [token for token in vocabulary.tokens if token and not token.strip("\n")]
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs] + [*added])
    return tokenizer


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the token of the highest score first.

    SentencePiece keeps scores in place of merges; ranks in the order of scores are the same.
    """
    scores = vocabulary.array("scores")
    tokens, ids = vocabulary.tokens, vocabulary.ids
    if len(scores) < len(tokens):
        raise vocabulary.error(
            "not every token has a score", "scores", found=len(scores), expected=len(tokens)
        )
    merges = []
    # Sorting is stable: of equal scores the token that comes first.
    for number in (-scores[: len(tokens)]).argsort(kind="stable").tolist():
        token = tokens[number]
        for cut in range(1, len(token)):
            if (left := token[:cut]) in ids and (right := token[cut:]) in ids:
                merges.append((left, right))
    return merges


def _model(vocabulary: Vocabulary, merges: list[tuple[str, str]]):
    unknown = vocabulary.token_id("unknown_token_id", 0)
    return merged_bpe(
        vocabulary,
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
    )


def _decoder(strip: bool):
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * strip)
