"""The chat templates of a file: which there are, which is taken, and what cannot be used."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from gguf import GGUFValueType as Type
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from ascend_gguf import GGUFError, load_tokenizer, open_gguf
from ascend_gguf.tokenizer import template_language, template_trial
from ascend_gguf.tokenizer.chat_templates import chat_templates, with_tools
from rewrite import rewrite

MODEL = Path(__file__).parents[1] / "data" / "qwen3-dense-Q4_K_M.gguf"
KEY = "tokenizer.chat_template"
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def _written(folder: Path, **templates: tuple) -> Path:
    """A model whose templates are these, ``default`` under the key itself."""
    keys = {
        KEY if name == "default" else f"{KEY}.{name}": value for name, value in templates.items()
    }
    rewrite(MODEL, folder / "m.gguf", keys=keys)
    return folder / "m.gguf"


def _text(template: str) -> tuple:
    return template, Type.STRING


@pytest.mark.parametrize(
    ("templates", "key", "says"),
    [
        ({"default": (7, Type.UINT32)}, KEY, "not text (found 7)"),
        ({"default": (["a", "b"], Type.ARRAY, Type.STRING)}, KEY, "not text (found ['a', 'b'])"),
        ({"default": (True, Type.BOOL)}, KEY, "not text (found True)"),
        ({"tool_use": (1.5, Type.FLOAT32)}, f"{KEY}.tool_use", "not text (found 1.5)"),
        ({"default": _text("{% for %}")}, KEY, "is not valid Jinja"),
        ({"default": _text("a\n{{ b | nofilter }}")}, KEY, "nofilter"),
        ({"default": _text("ok"), "rag": _text("{% if %}")}, f"{KEY}.rag", "is not valid Jinja"),
        ({"default": _text("{% if x %}\x1b[31m{% endfor %}")}, KEY, "is not valid Jinja"),
        ({"default": _text("{{" + "(" * 5000 + ")" * 5000 + "}}")}, KEY, "is not valid Jinja"),
    ],
)
def test_template_that_cannot_be_used(templates, key, says, tmp_path):
    path = _written(tmp_path, **templates)
    with pytest.raises(GGUFError) as error:
        load_tokenizer(path)
    message = str(error.value)
    assert says in message and f"'{key}'" in message and "--chat-template" in message
    assert message.isprintable()
    # What the user gives in its place has the tokenizer all the same.
    assert load_tokenizer(path, check_template=False).chat_template is None


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "1 sec"),
        # Jinja computes constants when it compiles.
        ("{{ 9 ** (9 ** 9) }}", "1 seconds"),
        ("{% macro f(n) %}{{ f(n - 1) ~ f(n - 1) if n }}{% endmacro %}{{ f(40) }}", "1 seconds"),
        ("{% set n = namespace(s='ab') %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}"
         "{% endfor %}", "256 MB"),
        ("{% if tools %}{{ 'a' * 10 ** 9 * messages | length }}{% endif %}", "256 MB"),
    ],
)  # fmt: skip
def test_template_that_does_not_come_to_an_end(template, says, tmp_path, monkeypatch):
    monkeypatch.setattr(template_trial, "CPU_SECONDS", 1)
    path = _written(tmp_path, default=_text(template))
    start = sum(os.times()[:4])  # of the trial too, which is a process
    with pytest.raises(GGUFError, match="takes too long or too much memory") as error:
        load_tokenizer(path)
    assert says in str(error.value) and len(str(error.value).splitlines()) == 1
    # Also where the user gives another; what was found out is known.
    assert load_tokenizer(path, check_template=False).chat_template is None
    assert sum(os.times()[:4]) - start < 4


def test_tools_have_a_template_of_their_own(tmp_path):
    # In an engine that takes the first template for everything.
    default, tool_use = (
        "\nplain {{ messages[0]['content'] }}\n",
        "{%- set n = tools | length %}{{ n }}",
    )
    path = _written(tmp_path, default=_text(default), tool_use=_text(tool_use), rag=_text("rag"))
    named = chat_templates(open_gguf(path))
    assert named == {"default": default, "tool_use": tool_use, "rag": "rag"}
    tokenizer = load_tokenizer(path)
    messages = [{"role": "user", "content": "hello"}]
    expected = [
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        for tools in (None, [TOOL])
    ]
    assert expected == ["\nplain hello", "1"]
    both = with_tools(named)
    assert both | named == both
    tokenizer.chat_template = next(iter(both.values()))
    found = [
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
        for tools in (None, [TOOL])
    ]
    assert found == expected


def test_a_template_for_tools_alone_is_the_default(tmp_path):
    path = tmp_path / "m.gguf"
    rewrite(MODEL, path, keys={KEY: _text(""), f"{KEY}.tool_use": _text("for all")})
    assert chat_templates(open_gguf(path))["default"] == "for all"


def test_the_language_is_that_of_transformers():
    """Tags, filters, tests and functions, how blocks are trimmed, and what comes out."""
    theirs = _compile_jinja_template("").environment
    ours = template_language.environment()
    for of in ("filters", "tests", "globals"):
        assert getattr(ours, of).keys() == getattr(theirs, of).keys()
    tags = [{tag for x in env.extensions.values() for tag in x.tags} for env in (ours, theirs)]
    assert tags[0] == tags[1]
    assert (ours.trim_blocks, ours.lstrip_blocks) == (theirs.trim_blocks, theirs.lstrip_blocks)
    template = (
        "{% for m in messages %}\n  {% if loop.last %}{% continue %}{% endif %}\n"
        "{% generation %}{{ m | tojson(indent=1) }}{% endgeneration %}\n{% endfor %}"
        "{{ '<é>' | tojson }}{{ messages[0].role | upper }}"
    )
    messages = [{"role": "user", "content": "a & b"}, {"role": "assistant", "content": "c"}]
    rendered, _ = render_jinja_template([messages], chat_template=template)
    assert template_language.compiled(template).render(messages=messages) == rendered[0]
