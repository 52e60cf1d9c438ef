"""How text is cut into words, before byte pairs are merged."""

from __future__ import annotations

import random
import time
from functools import cache

import pytest
from tokenizers import Regex, pre_tokenizers

from ascend_gguf import load_tokenizer
from ascend_gguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from tokenizer.vocabulary_files import (
    SPECIAL,
    TEXTS,
    byte_tokens,
    write,
    write_bytes,
)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_nothing_is_lost(tmp_path, pre):
    path = write_bytes(tmp_path / "model.gguf", "<s>", pre=pre, bos_token_id=SPECIAL)
    tokenizer = load_tokenizer(path)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert (ids[:1] == [SPECIAL]) == PRE_TOKENIZERS[pre].add_bos
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    "pre, text, words",
    [
        ("gpt-2", "It's 1234 THEY'LL  go", ["It", "'s", " 1234", " THEY", "'", "LL", " ", " go"]),
        ("llama-bpe", "It's 1234 THEY'LL", ["It", "'s", " ", "123", "4", " THEY", "'LL"]),
        ("qwen2", "a 123\n\nb", ["a", " ", "1", "2", "3", "\n\n", "b"]),
        ("qwen35", "न\u0940", ["न\u0940"]),
        ("qwen2", "न\u0940", ["न", "\u0940"]),
        ("starcoder", "x12", ["x", "1", "2"]),
        ("falcon", "12345,", ["123", "45", ","]),
        ("gpt-4o", "camelCase's 12345", ["camel", "Case's", " ", "123", "45"]),
        ("tekken", "camelCase's 12", ["camel", "Case", "'s", " ", "1", "2"]),
        ("tiny_aya", "1234567", ["1", "234", "567"]),
        ("afmoe", "1234567", ["1", "234", "567"]),
        ("superbpe", "1234567", ["1", "234", "567"]),
        ("deepseek-v3", "12345日本 ok", ["123", "45", "日本", " ok"]),
        ("deepseek-llm", "12345 日本 ok", ["12345", " ", "日本", " ok"]),
        ("kimi-k2", "日本ok 12345", ["日本", "ok", " ", "123", "45"]),
        ("bloom", "a, b.c", ["a", ",", " b", ".", "c"]),
        ("jais-2", "a" + " " * 6 + "b", ["a", " " * 4, " ", " b"]),
        ("ufakzeka", "Ali's", ["Ali", "'s"]),
        ("seed-coder", "a!\nb", ["a", "!", "\n", "b"]),
        ("bailingmoe", "a\n\nb", ["a", "\n\n", "b"]),
        ("laguna", "a!\nb", ["a", "!", "\n", "b"]),
        ("default", "12345", ["123", "45"]),
    ],
)
def test_words(tmp_path, pre, text, words):
    tokenizer = load_tokenizer(write_bytes(tmp_path / "model.gguf", pre=pre))
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [text[start:end] for _, (start, end) in pieces] == words


#: The models' own expressions, where ours are others: rule, place in it, how many are replaced.
_ORIGINALS = {
    ("tiny_aya", 0, 2): r"\d{1,3}(?=(?:\d{3})*\b)",
    ("afmoe", 0, 2): r"\d{1,3}(?=(?:\d{3})*(?!\d))",
    ("superbpe", 1, 2): r"(?=(\d{3})+(?!\d))",
    ("deepseek-llm", 3, 1): r"\s+$",
}


@cache
def _cutter(*patterns: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    )


#: Each rule once, with one of its names.
_RULES = {pre.patterns: name for name, pre in PRE_TOKENIZERS.items()}


def _cut(patterns, text: str) -> list[str]:
    return [word for word, _ in _cutter(*patterns).pre_tokenize_str(text)]


@pytest.mark.parametrize("name, place, count", _ORIGINALS)
def test_expressions_that_look_once_cut_as_the_originals(name, place, count):
    patterns = PRE_TOKENIZERS[name].patterns
    original = _ORIGINALS[name, place, count]
    originals = [*patterns[:place], original, *patterns[place + count :]]
    parts = [*"1x_ .,\n\xa0", "23", "456", "7890123", "\u00b2", "\u0663", "\u3000", "\u00bd"]
    source = random.Random(0)
    for _ in range(2000):
        text = "".join(source.choices(parts, k=source.randint(1, 9)))
        assert _cut(patterns, text) == _cut(originals, text), text


@pytest.mark.parametrize("patterns", _RULES, ids=_RULES.values())
def test_long_runs_take_no_square_of_their_length(patterns):
    # The originals of these took ten seconds and more for 50,000 digits or spaces.
    begin = time.process_time()
    for run in ("1", " ", "\u3000", "a", "."):
        _cut(patterns, run * 20_000 + "x")
        _cut(patterns, run * 20_000 + "!")
    assert time.process_time() - begin < 3


def test_a_word_that_is_a_token(tmp_path):
    # Llama 3 has tokens that no merges lead to.
    for pre, expected in (("llama-bpe", ["abc"]), ("qwen2", ["ab", "c"])):
        path = tmp_path / f"{pre}.gguf"
        write(path, byte_tokens("abc"), pre=pre, merges=["a b"])
        tokenizer = load_tokenizer(path)
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode("abc")) == expected
