"""Unigram vocabularies: what SentencePiece makes of the same text, token for token."""

from __future__ import annotations

import itertools
import math
import struct

import gguf
import pytest
from sentencepiece import SentencePieceProcessor

from ascend_gguf import GGUFError, load_tokenizer, open_gguf
from fetch import llama_cpp
from needs import fetched
from replacement_table import replacement_table

TEXTS = ("  Two  spaces, 1234567 digits; I'm SURE\n\n\tmixed\r\n", "\u0bb7\ue000<0x41>")


def _whole(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _whole(rest) if rest else bytes([low])


def _message(number: int, value: int | bytes) -> bytes:
    """A field of a message as protobuf writes it."""
    if isinstance(value, int):
        return _whole(number << 3) + _whole(value)
    return _whole(number << 3 | 2) + _whole(len(value)) + value


def _piece(text: str, score: float, kind: int) -> bytes:
    raw = text.encode()
    return _message(1, b"\n%c%b\x15%b\x18%c" % (len(raw), raw, struct.pack("<f", score), kind))


def test_sentencepiece_agrees_on_unigram():
    """XLM-RoBERTa's vocabulary, which llama.cpp's source has, and the library it was made with."""
    path = fetched(llama_cpp) / "models/ggml-vocab-nomic-bert-moe.gguf"
    keys = {key.rpartition(".")[2]: value for key, value in open_gguf(path).metadata.items()}
    pieces = zip(keys["tokens"], keys["scores"].tolist(), keys["token_type"].tolist(), strict=True)
    model = b"".join(itertools.starmap(_piece, pieces))
    # Unigram, and the ids of unk, bos, eos and pad.
    model += _message(
        2, b"".join(_message(*f) for f in ((3, 1), (40, 3), (41, 0), (42, 2), (43, 1)))
    )
    table = keys["precompiled_charsmap"].tobytes()
    model += _message(3, _message(2, table) + _message(3, 1) + _message(4, 1))
    expected = SentencePieceProcessor(model_proto=model)
    tokenizer = load_tokenizer(path)
    texts = path.with_name("ggml-vocab-bert-bge.gguf.inp").read_text()
    for text in [*texts.split("\n__ggml_vocab_test__\n"), *TEXTS]:
        tokens = expected.encode(text)
        assert tokenizer.encode(text, add_special_tokens=False) == tokens, text
        assert tokenizer.encode(text) == [0, *tokens, 2]
    text = "Hello w\u00f6rld, 北京"
    assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text


def _write(path, **keys):
    """A vocabulary alone: ids of T5, which need not be named."""
    tokens = ["<pad>", "</s>", "<unk>", "\u2581", "a", "y", "\u2581a", "yy", "[PAD8]"]
    scores = [0.0, 0.0, 0.0, -2.0, -2.0, -2.0, -3.0, -3.0, -10000.0]
    writer = gguf.GGUFWriter(path, "t5")
    writer.add_tokenizer_model("t5")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 2, 1, 1, 1, 1, 1, 5])
    writer.add_token_scores(keys.pop("scores", scores))
    for key, value in keys.items():
        if isinstance(value, bytes):
            writer.add_array(f"tokenizer.ggml.{key}", value)
        else:
            writer.add_bool(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("keys", "text", "tokens"),
    [
        ({}, "a  ya", [6, 3, 3, 5, 4, 1]),
        ({"remove_extra_whitespaces": True}, " a  ya ", [6, 3, 5, 4, 1]),
        ({"add_space_prefix": False}, "aa", [4, 4, 1]),
        ({"precompiled_charsmap": replacement_table(), "add_eos_token": False}, "ax", [6, 7]),
        # One unknown costs less than many.
        ({}, "[PAD8]</s>a", [3, 2, 1, 6, 1]),
    ],
)
def test_what_the_file_says(tmp_path, keys, text, tokens):
    tokenizer = load_tokenizer(_write(tmp_path / "t5.gguf", **keys))
    assert tokenizer.encode(text) == tokens


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"precompiled_charsmap": b"abc"}, "table of characters is damaged"),
        ({"precompiled_charsmap": replacement_table(b"\xe6\xbc\xa2\0", 1)}, "table of characters"),
        ({"precompiled_charsmap": replacement_table(place=9)}, "table of characters is damaged"),
        ({"precompiled_charsmap": replacement_table(base=512)}, "table of characters is damaged"),
        ({"precompiled_charsmap": replacement_table(b"yy")}, "table of characters is damaged"),
        ({"scores": [math.inf] * 9}, "not finite"),
    ],
)
def test_damaged(tmp_path, keys, says):
    with pytest.raises(GGUFError, match=says):
        load_tokenizer(_write(tmp_path / "t5.gguf", **keys))
