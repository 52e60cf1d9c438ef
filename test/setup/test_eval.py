"""python/make: the problems of `make eval`, what counts as solved, what it says of failures."""

import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest

import gsm8k
import setup_env
from evaluation import Answer, Result, wilson
from gsm8k import Problem

SCRIPT = setup_env.CHECKOUT / "python" / "make" / "eval.py"


@pytest.mark.parametrize(
    "text, number",
    [
        ("She has 16-3=13 eggs.\n#### 13", "13"),
        ("#### $1,234.50 dollars, not 7", "1234.50"),
        ("#### -5", "-5"),
        ("That makes 18.", "18"),
        ("It is 20-13", "13"),
        ("From -4 degrees", "-4"),
        ("I cannot say", None),
        ("", None),
    ],
)
def test_final_number(text, number):
    assert gsm8k.final_number(text) == (None if number is None else Decimal(number))


def test_prompt_of_examples():
    examples = [Problem("How many?", "One.\n#### 1"), Problem("Which?", "Two.\n#### 2")]
    assert gsm8k.prompt("And now?", examples) == (
        "Question: How many?\nAnswer: One.\n#### 1\n\n"
        "Question: Which?\nAnswer: Two.\n#### 2\n\n"
        "Question: And now?\nAnswer:"
    )


@pytest.mark.parametrize(
    "solved, asked, low, high",
    [(0, 20, 0.0, 0.161), (10, 20, 0.299, 0.701), (300, 300, 0.987, 1.0), (285, 300, 0.919, 0.969)],
)
def test_wilson_interval(solved, asked, low, high):
    assert wilson(solved, asked) == pytest.approx((low, high), abs=6e-4)


def test_result():
    def answer(found):
        return Answer("?", "4", "", found, tokens=10)

    result = Result([answer("4"), answer("5"), answer(None), answer("4")], seconds=2.0)
    assert (result.solved, result.accuracy, result.invalid) == (2, 0.5, 1)
    assert result.tokens_per_second == 20
    assert [entry["right"] for entry in result.record()["answers"]] == [True, False, False, True]
    assert "accuracy 0.500 (95 % interval 0.150 to 0.850)" in str(result)


@pytest.fixture
def nothing_shared(tmp_path, monkeypatch) -> Path:
    """No data beside the repository, and an empty cache, which is returned."""
    monkeypatch.setenv("ASCEND_GGUF_SHARED", str(tmp_path / "none"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_problems_are_fetched_once(nothing_shared, tmp_path, monkeypatch):
    source = tmp_path / "test.jsonl"
    source.write_text('{"question": "How many?", "answer": "#### 1"}\n')
    monkeypatch.setattr(gsm8k, "URL", source.as_uri())
    monkeypatch.setattr(gsm8k, "SHA256", gsm8k._digest(source.read_bytes()))
    assert gsm8k.problems(gsm8k.test_set()) == [Problem("How many?", "#### 1")]
    source.unlink()
    assert gsm8k.test_set().is_relative_to(nothing_shared)


def test_other_problems_are_refused(nothing_shared, tmp_path, monkeypatch):
    source = tmp_path / "test.jsonl"
    source.write_text("<html>")
    monkeypatch.setattr(gsm8k, "URL", source.as_uri())
    with pytest.raises(gsm8k.DataError, match="its SHA-256 is"):
        gsm8k.test_set()
    assert not nothing_shared.exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--model", "absent.gguf"], "MODEL=absent.gguf does not exist"),
        (["--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: APIConnectionError"),
        (["--url", "http://127.0.0.1:9", "--shots", "1"], "no question is left after 1 examples"),
        (["--data", "README.md"], "README.md, line 1: expected an object with question and answer"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(tmp_path, arguments, message):
    (tmp_path / "problems.jsonl").write_text('{"question": "How many?", "answer": "#### 1"}\n')
    (tmp_path / "README.md").write_text("text\n")
    command = [sys.executable, SCRIPT, "--data", "problems.jsonl", "--shots", "0", *arguments]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 1
    assert [line for line in refused.stderr.splitlines() if line.startswith("make eval")] == [
        refused.stderr.splitlines()[-1]
    ]
    assert message in refused.stderr
