"""Which files are rerankers, and what they are asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFValueType as Type

from ascend_gguf import GGUFError, load_config, load_tokenizer, open_gguf
from ascend_gguf.architectures import architecture_of, is_reranker
from ascend_gguf.tokenizer.reranking import filled, joined, rerank_template, takes_instruction
from rewrite import rewrite

MODEL = Path(__file__).parents[1] / "data" / "qwen3-dense-Q4_K_M.gguf"
TEMPLATE_KEY = "tokenizer.chat_template.rerank"


def _written(path: Path, rows: int = 2, tensor: str = "cls.output.weight", **keys: tuple) -> Path:
    keys = {name.replace("__", "."): value for name, value in keys.items()}
    rewrite(MODEL, path, keys=keys, tensors={tensor: np.ones((rows, 256), np.float32)})
    return path


def _names(*names: str) -> tuple:
    return list(names), Type.ARRAY, Type.STRING


@pytest.mark.parametrize(
    ("rows", "names", "labels"),
    [(2, _names("yes", "no"), ["yes", "no"]), (3, None, ["LABEL_0", "LABEL_1", "LABEL_2"])],
)
def test_a_head_for_labels(tmp_path, rows, names, labels):
    keys = {} if names is None else {"qwen3__classifier__output_labels": names}
    path = _written(tmp_path / "m.gguf", rows, **keys)
    config, file = load_config(path), open_gguf(path)
    assert is_reranker(file)
    assert config.architectures == ["Qwen3ForSequenceClassification"]
    assert list(config.id2label.values()) == labels
    name_map = architecture_of(file).name_map(file, config)
    assert name_map["cls.output.weight"] == "score.weight"


@pytest.mark.parametrize(
    ("tensor", "keys", "says"),
    [
        ("cls.output.weight", {"qwen3__pooling_type": (3, Type.UINT32)}, "pooling_type 4 (rank)"),
        ("cls.output.bias", {}, "pooling_type 4 (rank)"),
        ("cls.output.weight", {"qwen3__classifier__output_labels": _names("yes")}, "2 names"),
        ("cls.output.weight", {"qwen3__attention__causal": (False, Type.BOOL)}, "does not support"),
    ],
)
def test_heads_of_other_kinds_are_refused(tmp_path, tensor, keys, says):
    path = _written(tmp_path / "m.gguf", tensor=tensor, **keys)
    with pytest.raises(GGUFError) as error:
        config = load_config(path)
        architecture_of(open_gguf(path)).name_map(open_gguf(path), config)
    assert says in str(error.value)


def test_the_prompt_is_no_template_of_chats(tmp_path):
    text = "<Instruct>: Find\nit\n<Query>: {query}\n{document}"
    path = _written(tmp_path / "m.gguf", tokenizer__chat_template__rerank=(text, Type.STRING))
    assert rerank_template(open_gguf(path)) == text
    assert load_tokenizer(path).chat_template == load_tokenizer(MODEL).chat_template
    asked = filled(text, "{document}", "{query} \\1")
    assert asked == "<Instruct>: Find\nit\n<Query>: {document}\n{query} \\1"
    assert takes_instruction(text) and not takes_instruction("{query}{document}")
    assert filled(text, "q", "d", "\\1 {query}") == "<Instruct>: \\1 {query}\nit\n<Query>: q\nd"


@pytest.mark.parametrize("value", [("{query} alone", Type.STRING), (7, Type.UINT32)])
def test_a_prompt_without_places_is_refused(tmp_path, value):
    path = _written(tmp_path / "m.gguf", tokenizer__chat_template__rerank=value)
    with pytest.raises(GGUFError, match="the reranker.s prompt lacks") as error:
        rerank_template(open_gguf(path))
    assert error.value.key == TEMPLATE_KEY


def test_without_a_prompt_the_file_says_what_stands_between(tmp_path):
    flags = dict.fromkeys(("bos", "eos", "sep"), (True, Type.BOOL))
    keys = {f"tokenizer__ggml__add_{name}_token": flag for name, flag in flags.items()}
    keys["tokenizer__ggml__seperator_token_id"] = (7, Type.UINT32)
    path = _written(tmp_path / "m.gguf", **keys)
    tokenizer = load_tokenizer(path)
    q, d = (tokenizer.encode(text, add_special_tokens=False) for text in ("a query", "a text"))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = joined(open_gguf(path), tokenizer, "a query", "a text")
    assert found == [bos, *q, eos, 7, *d, eos]
    assert joined(open_gguf(MODEL), load_tokenizer(MODEL), "a query", "a text") == q + d
