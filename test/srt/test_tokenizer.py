"""Who reads a GGUF file's metadata for the engine, and how often."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from xgrammar import TokenizerInfo

from ascend_gguf import load_config, load_tokenizer
from ascend_gguf.reader import model_file
from ascend_gguf.srt.utils.hf_transformers.common import get_generation_config
from ascend_gguf.srt.utils.hf_transformers.config import get_config
from ascend_gguf.srt.utils.hf_transformers.tokenizer import get_tokenizer
from library.test_tokenizer import write_bytes, write_pieces
from rewrite import rewrite

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "model.gguf"
    rewrite(DATA / "qwen3-dense-Q4_K_M.gguf", path)
    return path


def _engines_own(*_, **__) -> str:
    return "the engine's own"


def test_everything_comes_from_one_parse(model, monkeypatch):
    parsed = []
    read_shard = model_file.read_shard
    monkeypatch.setattr(model_file, "read_shard", lambda p: parsed.append(p) or read_shard(p))
    # gguf-py takes a minute for a large vocabulary.
    monkeypatch.setattr(gguf, "GGUFReader", None)
    for _ in range(2):
        tokenizer = get_tokenizer(_engines_own, str(model))
        config = get_config(_engines_own, str(model), False)
        generation = get_generation_config(_engines_own, str(model), False)
    assert parsed == [model]
    assert tokenizer.get_vocab() == load_tokenizer(model).get_vocab()
    assert config.to_dict() == load_config(model).to_dict()
    # 0 is <|endoftext|>, which the file does not name as an end.
    assert generation.eos_token_id == [0, 2]
    assert tokenizer.additional_stop_token_ids == {0, 2}


@pytest.mark.parametrize(
    "beside, call",
    [
        ("tokenizer_config.json", lambda path: get_tokenizer(_engines_own, path)),
        ("generation_config.json", lambda path: get_generation_config(_engines_own, path, False)),
        ("config.json", lambda path: get_config(_engines_own, path, False)),
    ],
)
def test_a_file_beside_the_model_wins(model, beside, call):
    assert call(str(model)) != "the engine's own"
    (model.parent / beside).write_text("{}")
    assert call(str(model)) == "the engine's own"


def test_other_models_are_the_engines(tmp_path):
    assert get_tokenizer(_engines_own, str(tmp_path)) == "the engine's own"
    assert get_tokenizer(_engines_own, "owner/repo") == "the engine's own"
    assert get_generation_config(_engines_own, "owner/repo", False) == "the engine's own"


@pytest.mark.parametrize(
    "write, kind", [(write_bytes, "BYTE_LEVEL"), (write_pieces, "BYTE_FALLBACK")]
)
def test_grammars_know_how_tokens_are_written(tmp_path, write, kind):
    tokenizer = load_tokenizer(write(tmp_path / "model.gguf"))
    info = TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    assert info.vocab_type.name == kind
