"""Who reads a GGUF file's metadata for the engine, and how often."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest
from sglang.srt.managers.detokenizer_manager import DetokenizerManager
from xgrammar import TokenizerInfo

from ascend_gguf import load_config, load_tokenizer
from ascend_gguf.reader import model_file
from ascend_gguf.srt.managers.detokenizer_manager import split_prompts_at_characters
from ascend_gguf.srt.utils.hf_transformers.common import get_generation_config
from ascend_gguf.srt.utils.hf_transformers.config import get_config
from ascend_gguf.srt.utils.hf_transformers.tokenizer import get_tokenizer
from ascend_gguf.tokenizer.characters import TokenBytes
from rewrite import rewrite
from tokenizer.test_tokenizer import byte_tokens, write_bytes, write_pieces
from tokenizer.test_tokenizer import write as write_vocabulary

DATA = Path(__file__).parents[2] / "data"


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


def _answer(tokenizer, prompt: list[int], answer: list[int], at_once: bool) -> str:
    """What the engine's detokenizer sends for a prompt and an answer, in one part or many."""
    manager = DetokenizerManager.__new__(DetokenizerManager)
    manager.tokenizer, manager.vocab_size, manager.decode_status = tokenizer, len(tokenizer), {}
    manager.disable_tokenizer_batch_decode = manager.is_tool_call_parser_gpt_oss = False
    manager.tool_close_token_ids = frozenset()
    manager.ascend_gguf_bytes = TokenBytes(tokenizer)
    window = prompt[-5:]
    parts = [answer] if at_once else [[number] for number in answer]
    sent = ""
    for place, part in enumerate(parts):
        message = SimpleNamespace(
            rids=["r"],
            decoded_texts=[""],
            decode_ids=[part if place else window + part],
            read_offsets=[len(window)],
            finished_reasons=[{"type": "length"} if place == len(parts) - 1 else None],
            no_stop_trim=[False],
            skip_special_tokens=[True],
            spaces_between_special_tokens=[True],
        )
        split_prompts_at_characters(manager, message)
        (text,) = manager._decode_batch_token_id_output(message)
        assert at_once or place == len(parts) - 1 or "\ufffd" not in text
        sent += text
    return sent


#: Texts, and their ends: prompts are all before the end and one to three bytes of it.
_TEXTS = {
    "ab \U0001f636\U0001f32b ok": "\U0001f636\U0001f32b ok",
    "ab\U0001f636\U0001f32b ok": "\U0001f32b ok",
    "ab \u65e5 \U0001f636 ok": "\U0001f636 ok",
    "\U0001f636" * 4: "\U0001f636" * 2,
}


@pytest.mark.parametrize("write", [write_bytes, write_pieces])
@pytest.mark.parametrize("at_once", [True, False])
def test_prompts_that_end_inside_a_character(tmp_path, write, at_once):
    path = write(tmp_path / "model.gguf", add_bos_token=False)
    tokenizer = load_tokenizer(path)
    for text, expected in _TEXTS.items():
        ids = tokenizer.encode(text)
        count = len(tokenizer.encode(text[: len(text) - len(expected)])) + 1
        for cut in range(count, count + 3):
            assert _answer(tokenizer, ids[:cut], ids[cut:], at_once) == expected, (text, cut)
        # What the answer does not go on with is of the prompt, and no mark stands for it.
        other = tokenizer.encode("ok", add_special_tokens=False)
        assert _answer(tokenizer, ids[: count + 1], other, at_once).strip() == "ok"


def test_a_token_that_ends_inside_a_character(tmp_path):
    # A space and half an emoji are one token of most vocabularies.
    tokens = byte_tokens("\u0120\u00f0", "\u0120\u00f0\u0141")
    merges = ["\u0120 \u00f0", "\u0120\u00f0 \u0141"]
    path = write_vocabulary(tmp_path / "model.gguf", tokens, pre="gpt-2", merges=merges)
    tokenizer = load_tokenizer(path)
    ids = tokenizer.encode("a \U0001f636 b")
    assert tokenizer.convert_ids_to_tokens(ids[:2]) == ["a", "\u0120\u00f0\u0141"]
    for at_once in (True, False):
        assert _answer(tokenizer, ids[:2], ids[2:], at_once) == "\U0001f636 b"
        assert _answer(tokenizer, ids[:2], ids[-1:], at_once) == "b"
