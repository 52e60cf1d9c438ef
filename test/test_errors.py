"""GGUFError: one readable line, and it survives the way out of a process."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest

from ascend_gguf.errors import GGUFError

FULL = GGUFError(
    "data runs past the end of the file",
    file=Path("model.gguf"),
    tensor="blk.0.attn_q.weight",
    found=100,
    expected="at least 200",
    hint="Download the file again.",
)


def test_one_line_says_everything():
    assert str(FULL) == (
        "model.gguf: tensor 'blk.0.attn_q.weight': data runs past the end of the file "
        "(found 100, expected at least 200). Download the file again."
    )


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (GGUFError("it is bad"), "it is bad."),
        (GGUFError("it is bad", file="m.gguf"), "m.gguf: it is bad."),
        (GGUFError("it is bad", key="a.b"), "metadata key 'a.b': it is bad."),
        (GGUFError("it is bad", found=0), "it is bad (found 0)."),
        (GGUFError("it is bad", expected="good", hint="Go."), "it is bad (expected good). Go."),
    ],
)
def test_parts_may_be_missing(error, text):
    assert str(error) == text


def test_hostile_names_stay_on_one_short_line():
    text = str(GGUFError("it is bad", tensor="a\nb" + "x" * 10**6, found="line\nline\r\nline"))
    assert text.splitlines() == [text]
    assert len(text) < 400


HOSTILE = "\x1b[31mred\x1b[0m\x1b]0;title\x07\u202eevil\udcff\x9b1m" + "x" * 10_000


@pytest.mark.parametrize("part", ["tensor", "key", "found", "expected", "hint", "file", "problem"])
def test_every_text_is_shown_escaped_and_cut(part):
    text = str(GGUFError(**{"problem": "it is bad", part: HOSTILE}))
    assert text.isprintable()
    assert "\\x1b[31mred\\x1b[0m" in text and "\\u202e" in text
    text.encode()  # no lone surrogates either
    # A path is shown whole: it is the user's own.
    assert part == "file" or len(text) < 2500


@pytest.mark.parametrize("twin", [pickle.loads(pickle.dumps(FULL)), copy.copy(FULL)])
def test_survives_pickling(twin):
    assert type(twin) is GGUFError
    assert str(twin) == str(FULL)
    assert vars(twin) == vars(FULL)


def test_is_a_value_error():
    with pytest.raises(ValueError, match="it is bad"):
        raise GGUFError("it is bad")
