"""SentencePiece BPE: spaces are written ``\u2581``, unknown characters fall back to bytes.

Source of the rules: llama.cpp ``llm_tokenizer_spm_session`` (merge the pair that gives the token
with the highest score, leftmost first) and ``LLAMA_VOCAB_PRE_TYPE_GEMMA4`` (merges by rank).
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from ascend_gguf.tokenizer.bpe import merged_bpe, read_merges
from ascend_gguf.tokenizer.vocabulary import Vocabulary

_SPACE = "\u2581"

#: Names in ``tokenizer.ggml.pre`` of vocabularies whose merges are over text, not over bytes.
RAW_BPE = ("gemma4", "granite-embed-multi-311m", "sarvam-moe")


def sentencepiece(vocabulary: Vocabulary, added: list[AddedToken]) -> Tokenizer:
    """The tokenizer of a ``llama`` vocabulary.

    Raises:
        GGUFError: scores are missing, or not every token has one.
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


def raw_bpe(vocabulary: Vocabulary, added: list[AddedToken]) -> Tokenizer:
    """The tokenizer of a vocabulary with merges in the file (:data:`RAW_BPE`)."""
    tokenizer = Tokenizer(_model(vocabulary, read_merges(vocabulary)))
    tokenizer.normalizer = normalizers.Replace(" ", _SPACE)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[^\n]+|\n+"), "isolated")
    tokenizer.decoder = _decoder(strip=False)
    # No merge makes a run of newlines.
    runs = [token for token in vocabulary.tokens if token and not token.strip("\n")]
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs] + added)
    return tokenizer


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The pairs that give each token, the token with the highest score first.

    SentencePiece has scores instead of merges; ranks in the order of scores are equivalent.  Among
    equal scores, which some converters write if they have none, the token with the lowest id comes
    first: vocabularies are sorted.

    Raises:
        GGUFError: scores are missing, or not every token has one.
    """
    scores = scores_of(vocabulary)
    tokens, ids = vocabulary.tokens, vocabulary.ids
    order = (-scores).argsort(kind="stable")
    ranks = order.argsort().tolist()
    merges: list[tuple[str, str]] = []
    for number in order.tolist():
        token = tokens[number]
        if len(token) > _LONG:
            merges += _last_merge(token, ranks, ids)
            continue
        ways = [
            (left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in ids and (right := token[cut:]) in ids
        ]
        # Only one of them ever occurs, but keeping all is cheaper than finding it.
        merges += ways if len(ways) <= _MOST_WAYS else _last_merge(token, ranks, ids)
    return merges


#: Limits: the pairs of a token times their length grow with the square of its length.
_LONG = 64
_MOST_WAYS = 8


def scores_of(vocabulary: Vocabulary) -> np.ndarray:
    """The score of each token.

    Raises:
        GGUFError: scores are missing, or not every token has one.
    """
    scores = vocabulary.numbers("scores").astype(np.float64)
    if len(scores) < len(vocabulary.tokens):
        raise vocabulary.error(
            "not every token has a score",
            "scores",
            found=len(scores),
            expected=len(vocabulary.tokens),
        )
    if np.isnan(scores).any():
        raise vocabulary.error("a score is not a number", "scores", found="nan")
    return scores[: len(vocabulary.tokens)]


def _last_merge(token: str, ranks: list[int], ids: dict[str, int]) -> list[tuple[str, str]]:
    """The only pair that ever merges into ``token``, if any: found by merging its letters.

    The text around a token does not change the order in which its own letters are merged.
    """
    size = len(token)
    ends = list(range(1, size + 1))  # end of the piece that begins at a letter; 0 inside a piece
    before = list(range(-1, size - 1))  # start of the previous piece
    waiting = [
        (ranks[number], left, left + 2)
        for left in range(size - 1)
        if (number := ids.get(token[left : left + 2])) is not None
    ]
    heapify(waiting)
    while waiting:
        _, left, end = heappop(waiting)
        right = ends[left]
        if not 0 < right < size or ends[right] != end:
            continue  # one of the two has been merged with another
        if left == 0 and end == size:
            pair = token[:right], token[right:]
            return [pair] if pair[0] in ids and pair[1] in ids else []
        ends[left], ends[right] = end, 0
        if end < size:
            before[end] = left
            number = ids.get(token[left : ends[end]])
            if number is not None:
                heappush(waiting, (ranks[number], left, ends[end]))
        if left:
            start = before[left]
            number = ids.get(token[start:end])
            if number is not None:
                heappush(waiting, (ranks[number], start, end))
    return []


def _model(vocabulary: Vocabulary, merges: list[tuple[str, str]]) -> models.BPE:
    unknown = vocabulary.token_id("unknown_token_id", 0)
    return merged_bpe(
        vocabulary,
        merges,
        byte_fallback=True,
        fuse_unk=True,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
    )


def _decoder(strip: bool) -> decoders.Decoder:
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(parts + [decoders.Strip(" ", 1, 0)] * strip)
