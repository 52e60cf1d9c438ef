"""The tokenizer of a GGUF file: what llama.cpp makes of the same text, token for token."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ascend_gguf import GGUFError, load_tokenizer, open_gguf
from ascend_gguf.tokenizer import stop_token_ids
from ascend_gguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS
from ascend_gguf.tokenizer.sentencepiece import merges_by_score
from ascend_gguf.tokenizer.vocabulary import read_vocabulary
from fetch import llama_cpp
from needs import fetched
from tokenizer.vocabulary_files import (
    BYTE,
    CONTROL,
    NORMAL,
    SPECIAL,
    TEXTS,
    UNKNOWN,
    USER_DEFINED,
    byte_tokens,
    write,
    write_bytes,
)

DATA = Path(__file__).parents[1] / "data"


# --- against llama.cpp ----------------------------------------------------------------------


def _vocabulary(name: str) -> tuple[PreTrainedTokenizerBase, list[tuple[str, list[int]]]]:
    """Of llama.cpp's source: the tokenizer of a vocabulary, and texts with their tokens."""
    path = fetched(llama_cpp) / f"models/ggml-vocab-{name}.gguf"
    texts = path.with_name(f"{path.name}.inp").read_text().split("\n__ggml_vocab_test__\n")
    lines = path.with_name(f"{path.name}.out").read_text().splitlines()
    assert len(texts) - 1 == len(lines) or len(texts) == len(lines)
    tokens = [[int(token) for token in line.split()] for line in lines]
    return load_tokenizer(path), list(zip(texts, tokens, strict=False))


def test_llama_cpp_agrees_on_bert():
    tokenizer, examples = _vocabulary("bert-bge")
    for text, tokens in examples:
        assert tokenizer.encode(text, add_special_tokens=False) == tokens, text
        assert tokenizer.encode(text) == [101, *tokens, 102]
    assert tokenizer.decode(tokenizer.encode(TEXTS[0]), skip_special_tokens=True) == TEXTS[0]


@pytest.mark.parametrize("kind", [CONTROL, NORMAL])
def test_special_tokens_of_bert_by_their_ids(tmp_path, kind):
    """Whatever they are called and marked as; colons and dollar signs mean something elsewhere."""
    tokens = {"$A": kind, "b:1": kind, "[SEP] x": kind, "\u2581hello": NORMAL, "s": NORMAL}
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "seperator_token_id": 2}
    path = write(tmp_path / "bert.gguf", tokens, "bert", **ids)
    assert load_tokenizer(path).encode("hello hellos \u2603") == [1, 3, 3, 4, 0, 2]


def test_tokens_of_bert_that_are_the_same(tmp_path):
    """One of them has its mark of a word, the other its type."""
    tokens = {"[UNK]": CONTROL, "[CLS]": CONTROL, "[SEP]": CONTROL}
    tokens |= {"hello": CONTROL, "\u2581hello": NORMAL}
    ids = {"unknown_token_id": 0, "bos_token_id": 1, "seperator_token_id": 2}
    path = write(tmp_path / "bert.gguf", tokens, "bert", **ids)
    with pytest.raises(GGUFError, match=r"a token occurs twice \(found 'hello' as 3 and 4\)"):
        load_tokenizer(path)


@pytest.mark.parametrize(
    "name",
    [
        *("deepseek-coder", "deepseek-llm", "falcon", "gpt-2", "llama-bpe", "llama-spm", "mpt"),
        *("phi-3", "qwen2", "qwen35", "refact", "starcoder"),
        # A second and more each.
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("command-r", "gemma-4")),
    ],
)
def test_llama_cpp_agrees(name):
    tokenizer, examples = _vocabulary(name)
    for text, tokens in examples:
        assert tokenizer.encode(text, add_special_tokens=False) == tokens, text
        assert tokenizer.decode(tokens) == text


#: What llama-tokenize says of the vocabulary of test/data.
SMALL = {
    "hello<|im_end|> there é 12": [286, 2, 223, 86, 74, 71, 84, 71, 223, 130, 105, 223, 19, 20],
}


@pytest.mark.parametrize("text", SMALL)
def test_a_model_of_the_test_data(text):
    tokenizer = load_tokenizer(DATA / "qwen3-moe-Q4_K_M.gguf")
    assert tokenizer.is_fast
    assert tokenizer.encode(text) == SMALL[text]
    assert tokenizer.decode(SMALL[text]) == text


#: token -> score.  Made for this test; the ids are what llama-tokenize gives for it.
PIECES = {
    "\u2581": -20.0,
    **{letter: -30.0 - place for place, letter in enumerate("abcdehlorw")},
    "ll": -3.0,
    "he": -2.0,
    "lo": -1.0,
    "\u2581he": -4.0,
    "llo": -5.0,
    "hello": -6.0,
    "\u2581hello": -7.0,
    "aa": -8.0,
    "aaa": -8.5,
    "\u2581\u2581": -9.0,
    "or": -10.0,
    "wor": -11.0,
    "\u2581wor": -12.0,
}


def write_pieces(path: Path, **keys: Any) -> Path:
    tokens = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
    tokens |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    tokens |= {"<|turn|>": CONTROL, "<sep>": USER_DEFINED}
    scores = [0.0] * len(tokens) + list(PIECES.values())
    return write(path, tokens | dict.fromkeys(PIECES, NORMAL), "llama", scores=scores, **keys)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("hello world", [1, 278, 284, 268, 265]),
        ("aaaaa", [1, 261, 279, 280]),
        ("  hello<|turn|>hello<sep> hello", [1, 281, 278, 259, 278, 260, 261, 278]),
        ("é z", [1, 261, 198, 172, 261, 125]),
        ("<s>aab", [1, 1, 261, 279, 263]),
        ("helloworld held", [1, 278, 283, 268, 265, 275, 268, 265]),
    ],
)
def test_sentencepiece(tmp_path, text, expected):
    tokenizer = load_tokenizer(write_pieces(tmp_path / "model.gguf"))
    assert tokenizer.encode(text) == expected
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (
        "<s>",
        "</s>",
        "<unk>",
    )


def test_sentencepiece_without_the_space_before(tmp_path):
    path = write_pieces(
        tmp_path / "model.gguf", add_space_prefix=False, add_bos_token=False, add_eos_token=True
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("hello world") == [277, 284, 268, 265, 2]
    assert tokenizer.encode(" hello") == [278, 2]
    assert tokenizer.decode([278]) == " hello"


def test_long_chains_of_tokens(tmp_path):
    # There are 80,000 ways to make these tokens of each other, and no more than one is ever taken.
    tokens = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL, "\u2581": NORMAL}
    first = len(tokens) - 1
    tokens |= {"a" * length: NORMAL for length in range(1, 400)}
    scores = [0.0] * 4 + [-float(length) for length in range(1, 400)]
    path = write(tmp_path / "model.gguf", tokens, "llama", scores=scores, add_space_prefix=False)
    merges = merges_by_score(read_vocabulary(open_gguf(path)))
    assert len(merges) < 8 * len(tokens)
    tokenizer = load_tokenizer(path)
    for text, lengths in {  # as llama-tokenize has it
        "a" * 399: [399],
        "a" * 400: [256, 144],
        "a" * 1000: [256, 256, 256, 232],
        "aaaaaaa" + " " + "a" * 22: [7, 0, 22],
    }.items():
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == [first + length for length in lengths]


def test_bytes_that_the_vocabulary_lacks(tmp_path):
    # As SmolLM2's: they become nothing, and what they separate stays apart.
    tokens = {token: NORMAL for token in byte_tokens() if token not in "\u0107c\u0120"}
    path = write(tmp_path / "model.gguf", tokens, pre="smollm", merges=["a b"])
    tokenizer = load_tokenizer(path)
    assert tokenizer.tokenize("ab a\x07b acb") == ["ab", "a", "b", "a", "b"]


def test_merges_over_text(tmp_path):
    # As in Gemma 4: merges in the file, spaces as in SentencePiece, runs of newlines are tokens.
    tokens = {"<pad>": CONTROL, "<eos>": CONTROL, "<bos>": CONTROL, "<unk>": UNKNOWN}
    tokens |= {f"<0x{byte:02X}>": BYTE for byte in range(256)}
    first = len(tokens)
    tokens |= dict.fromkeys(["\u2581", "h", "i", "hi", "\u2581hi", "\n", "\n\n"], NORMAL)
    path = write(
        tmp_path / "model.gguf",
        tokens,
        "gemma4",
        merges=["h i", "\u2581 hi"],
        bos_token_id=2,
        eos_token_id=1,
        unknown_token_id=3,
        add_bos_token=False,  # the files say so, and llama.cpp knows better
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("hi hi\n\nhi") == [2, first + 3, first + 4, first + 6, first + 3]
    assert tokenizer.decode(tokenizer.encode("  hi\nz"), skip_special_tokens=True) == "  hi\nz"


# --- added and special tokens ---------------------------------------------------------------


def test_added_tokens_that_look_like_bytes(tmp_path):
    # DeepSeek's vocabularies; through its own tokenizer these letters come back as U+FFFD.
    tokens = byte_tokens() | {"ü": USER_DEFINED, "é!": USER_DEFINED}
    path = write(tmp_path / "model.gguf", tokens, pre="deepseek-llm", merges=["a b"])
    tokenizer = load_tokenizer(path)
    text = "für é! é ü"
    tokens = tokenizer.convert_ids_to_tokens(tokenizer.encode(text))
    assert tokens.count("ü") == 2 and tokens.count("é!") == 1
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_spaces_after_special_tokens_of_phi_3(tmp_path):
    path = write_pieces(tmp_path / "model.gguf", general__name="Phi-3 mini")
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode("<|turn|>  hello<s> hello") == [1, 259, 278, 1, 261, 278]


def test_special_tokens_are_left_out_of_answers(tmp_path):
    path = write_bytes(tmp_path / "model.gguf", "<|im_start|>", "<|im_end|>")
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("<|im_start|>hi<|im_end|>")
    assert ids[0] == SPECIAL and ids[-1] == SPECIAL + 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hi"


@pytest.mark.parametrize("bos, eos", [(True, False), (False, True), (True, True), (False, False)])
def test_bos_and_eos_as_the_file_asks(tmp_path, bos, eos):
    path = write_bytes(
        tmp_path / "model.gguf",
        "<s>",
        "<e>",
        bos_token_id=SPECIAL,
        eos_token_id=SPECIAL + 1,
        add_bos_token=bos,
        add_eos_token=eos,
    )
    tokenizer = load_tokenizer(path)
    (a,) = tokenizer.encode("a", add_special_tokens=False)
    assert tokenizer.encode("a") == [SPECIAL] * bos + [a] + [SPECIAL + 1] * eos


def test_ids_that_the_vocabulary_lacks(tmp_path):
    path = write_bytes(tmp_path / "model.gguf", pad_token_id=1, bos_token_id=0xFFFFFFFF)
    assert load_tokenizer(path).bos_token is None
    assert stop_token_ids(path) == set()


# --- templates and saving -------------------------------------------------------------------


def test_chat_template():
    tokenizer = load_tokenizer(DATA / "qwen3-moe-Q4_K_M.gguf")
    messages = [{"role": "user", "content": "hello"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"


def test_several_chat_templates(tmp_path):
    path = write_bytes(
        tmp_path / "model.gguf",
        tokenizer__chat_template="plain",
        tokenizer__chat_template__tool_use="with tools",
    )
    tokenizer = load_tokenizer(path)
    message = [{"role": "user", "content": "hello"}]
    assert tokenizer.apply_chat_template(message, tokenize=False) == "plain"
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    assert tokenizer.apply_chat_template(message, tools=[tool], tokenize=False) == "with tools"


def test_saved_and_loaded_by_transformers(tmp_path):
    original = load_tokenizer(DATA / "qwen3-moe-Q4_K_M.gguf")
    original.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, *SMALL):
        assert saved.encode(text) == original.encode(text)
    assert saved.chat_template == original.chat_template
    assert saved.eos_token_id == original.eos_token_id


# --- bad vocabularies -----------------------------------------------------------------------


def test_unknown_pre_tokenizer(tmp_path):
    path = write_bytes(tmp_path / "model.gguf", pre="klingon")
    with pytest.raises(GGUFError, match="tokenizer.ggml.pre.*klingon") as error:
        load_tokenizer(path)
    for name in (*PRE_TOKENIZERS, "gemma4"):
        assert name in str(error.value)


def test_no_pre_tokenizer(tmp_path, caplog):
    tokenizer = load_tokenizer(write_bytes(tmp_path / "model.gguf", pre=None))
    assert "tokenizer.ggml.pre" in caplog.text
    assert len(tokenizer.encode("12345")) == 5


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("model", "rwkv", "rwkv.*gpt2, llama or t5"),
        ("model", None, "not supported"),
        ("model", 7, "a string"),
        ("merges", ["a bc"], "merges do not fit"),
        ("merges", None, "the array is missing"),
        ("merges", [1, 2, 3], "found 3 numbers of type int32, expected strings"),
        ("merges", ["a", "b"], "merges do not fit"),
        ("merges", "a b", "the array is missing"),
        ("bos_token_id", "three", "a token id"),
        ("add_bos_token", "yes", "true or false"),
    ],
)
def test_bad_vocabulary(tmp_path, key, value, message):
    with pytest.raises(GGUFError, match=f"tokenizer.ggml.{key}.*{message}"):
        load_tokenizer(write_bytes(tmp_path / "model.gguf", **{key: value}))


def test_sentencepiece_without_scores(tmp_path):
    tokens = {"<unk>": UNKNOWN, "a": NORMAL}
    with pytest.raises(GGUFError, match="scores.*the array is missing"):
        load_tokenizer(write(tmp_path / "none.gguf", tokens, "llama"))
    with pytest.raises(GGUFError, match="not every token has a score.*found 1, expected 2"):
        load_tokenizer(write(tmp_path / "few.gguf", tokens, "llama", scores=[0.0]))


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("tokens", [1, 2], "found 2 numbers of type int32, expected strings"),
        ("tokens", ["<unk>", b"a\xf3"], r"a token is not UTF-8 .found 'a.*udcf3' as 1"),
        ("token_type", ["1", "3"], "found 2 strings, expected whole numbers"),
        ("token_type", [1.0, 3.0], "found 2 numbers of type float32, expected whole numbers"),
        ("token_type", [True, False], "found 2 numbers of type bool, expected whole numbers"),
        ("token_type", [1], "not every token has a type .found 1, expected 2"),
        ("scores", ["0", "1"], "found 2 strings, expected numbers"),
        ("scores", [True, False], "found 2 numbers of type bool, expected numbers"),
        ("scores", [0.0, math.nan], "a score is not a number"),
    ],
)
def test_arrays_of_other_types(tmp_path, key, value, message):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    arrays = {"tokens": ["<unk>", "a"], "token_type": [2, 1], "scores": [0.0, 0.0], key: value}
    writer.add_string("tokenizer.ggml.model", "llama")
    for name, array in arrays.items():
        writer.add_array(f"tokenizer.ggml.{name}", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GGUFError, match=f"tokenizer.ggml.{key}.*{message}"):
        load_tokenizer(tmp_path / "model.gguf")


def test_a_beginning_with_a_space_in_its_name(tmp_path):
    """transformers writes what stands around a text as a template, in words."""
    tokens = {"<unk>": UNKNOWN, "two words": CONTROL, "</s>": CONTROL, "a": NORMAL}
    path = write(tmp_path / "model.gguf", tokens, "llama", scores=[0.0] * 4)
    with pytest.raises(GGUFError, match="found 'two words', '</s>', expected names without spaces"):
        load_tokenizer(path)


def test_no_vocabulary(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(GGUFError, match="tokenizer.ggml.tokens.*--tokenizer-path"):
        load_tokenizer(tmp_path / "model.gguf")
    assert stop_token_ids(tmp_path / "model.gguf") == set()
