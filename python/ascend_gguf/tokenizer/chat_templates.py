"""The chat templates of a GGUF file: one, or several by name."""

from __future__ import annotations

import multiprocessing

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile
from ascend_gguf.tokenizer.template_trial import endless

_KEY = "tokenizer.chat_template"

#: A reranker's prompt, which is no template of chats: see :mod:`ascend_gguf.tokenizer.reranking`.
RERANK_KEY = f"{_KEY}.rerank"

_OTHER_TEMPLATE = "Pass another one with --chat-template FILE.jinja."


def chat_templates(file: GGUFFile, check: bool = True) -> str | dict[str, str] | None:
    """The template, or all of them by name where the file has several.

    Args:
        check: refuse a template that cannot be used; if false, there is none.

    Raises:
        GGUFError: a template is no text, does not parse, or does not come to an end.
    """
    named = {
        key.removeprefix(f"{_KEY}."): template
        for key, template in file.metadata.items()
        if key.startswith(f"{_KEY}.") and key != RERANK_KEY
    }
    default = file.metadata.get(_KEY)
    # Of an engine's other processes the first has found it out.
    tried = check or multiprocessing.parent_process() is None
    try:
        for name, template in named.items():
            _check(file, f"{_KEY}.{name}", template, tried)
        if default is not None:
            _check(file, _KEY, default, tried)
    except GGUFError:
        if check:
            raise
        return None
    if not default:  # as llama.cpp does
        default = named.get("tool_use")
    return {"default": default} | named if default and named else default


def with_tools(templates: dict[str, str]) -> dict[str, str]:
    """Named templates, and before them one that is ``tool_use`` for a request with tools.

    For an engine that takes the first template for all requests.
    """
    if "tool_use" not in templates or templates["tool_use"] == templates["default"]:
        return templates
    # What begins a template: a newline there is text, and would be trimmed behind a tag. A newline
    # at the end is not text.
    tools, default = (
        "{{ '' }}" + templates[name].removesuffix("\n") for name in ("tool_use", "default")
    )
    both = f"{{% if tools %}}{tools}{{% else %}}{default}{{% endif %}}"
    return {"default, tool_use": both} | templates


def _check(file: GGUFFile, key: str, template: object, tried: bool) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    problem = found = None
    if not isinstance(template, str):
        problem, found = "the chat template is not text", f"{template!r:.80}"
    elif tried and (too_much := endless(template)):
        problem, found = (
            "the chat template takes too long or too much memory",
            f"more than {too_much}",
        )
    elif tried:
        try:
            _compile_jinja_template(template)
        except Exception as error:  # whatever Jinja raises: a few templates end in a RecursionError
            line = getattr(error, "lineno", None)
            problem = f"the chat template is not valid Jinja: {error}"
            found = None if line is None else f"line {line}"
    if problem is not None:
        raise GGUFError(
            problem, file=file.files[0], key=key, found=found, hint=_OTHER_TEMPLATE
        ) from None
