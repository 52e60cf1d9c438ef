"""Hard strings in the tokenizers of real models: the tokens are llama.cpp's."""

from __future__ import annotations

import json

import pytest

from ascend_gguf import load_tokenizer
from hard_strings import STRINGS
from needs import fetched
from real_models import MODELS


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_agrees(name):
    tokenizer = load_tokenizer(fetched(lambda: MODELS[name].path))
    rows = json.loads(STRINGS.read_text())
    column = 1 + list(MODELS).index(name)
    texts, expected = [row[0] for row in rows], [row[column] for row in rows]
    found = tokenizer(texts, add_special_tokens=False)["input_ids"]
    wrong = {
        text: (ids, right)
        for text, ids, right in zip(texts, found, expected, strict=True)
        if ids != right
    }
    assert not wrong
