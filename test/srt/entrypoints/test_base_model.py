"""A base model asked through chat: told where to ask."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ascend_gguf.requests import RequestError
from ascend_gguf.srt.entrypoints.openai.serving_chat import _process_messages


def _ask(template: str | None = None, name: str | None = None, kwargs: dict | None = None) -> str:
    serving = SimpleNamespace(
        template_manager=SimpleNamespace(chat_template_name=name, python_chat_template=None),
        tokenizer_manager=SimpleNamespace(tokenizer=SimpleNamespace(chat_template=template)),
        chat_encoding_spec=None,
        default_chat_template_kwargs={},
    )
    request = SimpleNamespace(messages=[], chat_template_kwargs=kwargs)
    return _process_messages(lambda *_, **__: "a prompt", serving, request, False)


def test_without_a_template():
    with pytest.raises(RequestError, match=r"base model.*/v1/completions.*--chat-template"):
        _ask()


@pytest.mark.parametrize(
    "has", [{"template": "{{ x }}"}, {"name": "chatml"}, {"kwargs": {"chat_template": "{{ x }}"}}]
)
def test_with_one(has):
    assert _ask(**has) == "a prompt"
