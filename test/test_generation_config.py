"""What ends an answer, and the sampling that a file recommends."""

from __future__ import annotations

import pytest

from ascend_gguf import GGUFError, load_generation_config, load_tokenizer, open_gguf
from ascend_gguf.generation_config import ignored_settings
from ascend_gguf.tokenizer import stop_token_ids
from tokenizer.vocabulary_files import SPECIAL, byte_tokens, write, write_bytes


@pytest.mark.parametrize(
    "tokens, keys, stops",
    [
        (["<a>", "<b>", "<c>", "<d>"], dict(eos=0, eot=1, eom=2), "<a> <b> <c>"),
        (["<|im_end|>", "<|endoftext|>", "<d>"], dict(eos=0), "<|im_end|> <|endoftext|>"),
        (["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"], dict(eos=2), "*"),
        (["<|end|>", "<|endoftext|>"], dict(eos=1), "*"),
        (["<|end|>", "<|return|>", "<|call|>"], dict(eos=1), "<|return|> <|call|>"),
        (["<|end|>", "<|flush|>", "<|calls|>"], dict(eos=1), "<|flush|> <|calls|>"),
        (["<end_of_turn>", "<eos>", "</s>"], dict(eos=1), "*"),
        (["<|fim_pad|>", "<|repo_name|>", "<|file_sep|>", "<|fim_middle|>"], dict(eos=0), "* 3"),
        (["<x>", "<PAD>", "<y>"], dict(eos=0, fim_pad=2), "<x> <y>"),
        (["[e~[", "[EOS]", "[EOT]", "<turn|>"], {}, "*"),
        (["<\uff5cend\u2581of\u2581sentence\uff5c>"], {}, "*"),
    ],
)
def test_what_ends_an_answer(tmp_path, tokens, keys, stops):
    ids = {f"{name}_token_id": SPECIAL + place for name, place in keys.items()}
    path = write_bytes(tmp_path / "model.gguf", *tokens, **ids)
    if stops.startswith("*"):
        stops = " ".join(tokens[: int(stops[1:] or len(tokens))])
    tokenizer = load_tokenizer(path)
    assert set(tokenizer.convert_ids_to_tokens(sorted(stop_token_ids(path)))) == set(stops.split())
    assert set(load_generation_config(path).eos_token_id) == stop_token_ids(path)


def test_marks_of_what_is_filled_in(tmp_path):
    # Whatever their type, as in llama.cpp.
    marks = ["<|fim_prefix|>", "<fim_suffix>", "<MID>"]
    path = write(tmp_path / "model.gguf", byte_tokens(*marks), pre="qwen2", merges=["a b"])
    assert load_tokenizer(path).tokenize("".join(marks)) == marks
    assert stop_token_ids(path) == set()


def test_html_does_not_end_an_answer(tmp_path):
    # "</s>" is an ordinary token of Qwen's vocabularies, as part of HTML.
    tokens = byte_tokens("<|im_end|>", "</s>")
    path = write(tmp_path / "model.gguf", tokens, pre="qwen2", merges=["a b"])
    # A mark of the end that the file takes for text is a mark all the same, as in llama.cpp.
    assert stop_token_ids(path) == {SPECIAL}
    assert load_tokenizer(path).encode("<|im_end|>") == [SPECIAL]
    assert load_tokenizer(path).decode([SPECIAL], skip_special_tokens=True) == ""


def test_sampling_as_the_file_recommends(tmp_path):
    path = write_bytes(
        tmp_path / "model.gguf", general__sampling__temp=0.5, general__sampling__top_k=20
    )
    config = load_generation_config(path)
    assert (config.temperature, config.top_k, config.top_p) == (0.5, 20, None)
    path = write_bytes(tmp_path / "bad.gguf", general__sampling__temp="hot")
    with pytest.raises(GGUFError, match="general.sampling.temp.*hot.*a number"):
        load_generation_config(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temp", float("nan")),
        ("temp", float("inf")),
        ("top_p", float("nan")),
        ("top_p", 0.0),
        ("min_p", 1.5),
        ("min_p", float("inf")),
        ("penalty_repeat", 0.0),
        ("penalty_repeat", 3.0),
        ("penalty_repeat", float("nan")),
        ("top_k", 2.5),
        ("top_k", True),
    ],
)
def test_sampling_that_makes_no_sense(key, value, tmp_path):
    path = write_bytes(tmp_path / "m.gguf", **{f"general__sampling__{key}": value})
    with pytest.raises(GGUFError, match=f"general.sampling.{key}.*invalid value") as error:
        load_generation_config(path)
    assert "gguf-set-metadata" in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "name", "expected"),
    [
        ("temp", -1.0, "temperature", 0),
        ("top_k", 0, "top_k", -1),
        ("top_p", 1.5, "top_p", 1.0),
        ("min_p", -0.5, "min_p", 0),
    ],
)
def test_settings_that_mean_none(key, value, name, expected, tmp_path):
    """As llama.cpp samples by them, in the engine's words."""
    path = write_bytes(tmp_path / "m.gguf", **{f"general__sampling__{key}": value})
    assert getattr(load_generation_config(path), name) == expected


def test_settings_that_the_engine_lacks(tmp_path):
    path = write_bytes(
        tmp_path / "m.gguf",
        general__sampling__mirostat=2,
        general__sampling__xtc_probability=0.0,
    )
    assert ignored_settings(open_gguf(path)) == ["general.sampling.mirostat"]
