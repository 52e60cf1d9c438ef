"""The chat templates of a GGUF file: one, or several with names."""

from __future__ import annotations

import multiprocessing

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile
from ascend_gguf.tokenizer.template_language import compiled
from ascend_gguf.tokenizer.template_trial import endless

_KEY = "tokenizer.chat_template"

#: A reranker's prompt, not a chat template: see :mod:`ascend_gguf.tokenizer.reranking`.
RERANK_KEY = f"{_KEY}.rerank"

_OTHER_TEMPLATE = "Pass another one with --chat-template FILE.jinja."


def chat_templates(file: GGUFFile, check: bool = True) -> str | dict[str, str] | None:
    """The template, or all templates by name if the file has several.

    Args:
        check: raise if a template cannot be used; otherwise return None.

    Raises:
        GGUFError: a template is not text, is not valid Jinja, or takes too long or too much memory.
    """
    named = {
        key.removeprefix(f"{_KEY}."): template
        for key, template in file.metadata.items()
        if key.startswith(f"{_KEY}.") and key != RERANK_KEY
    }
    default = file.metadata.get(_KEY)
    # The engine's main process has tried it; its other processes need not.
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
    """Add a first template that is ``tool_use`` for requests with tools and the default for others.

    For an engine that uses the first template for all requests.
    """
    if "tool_use" not in templates or templates["tool_use"] == templates["default"]:
        return templates
    # A newline at the start of a template is text, but Jinja would trim it after a tag.  A newline
    # at the end is not text.
    tools, default = (
        "{{ '' }}" + templates[name].removesuffix("\n") for name in ("tool_use", "default")
    )
    both = f"{{% if tools %}}{tools}{{% else %}}{default}{{% endif %}}"
    return {"default, tool_use": both} | templates


def _check(file: GGUFFile, key: str, template: object, tried: bool) -> None:
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
            compiled(template)
        except Exception as error:  # whatever Jinja raises: a few templates end in a RecursionError
            line = getattr(error, "lineno", None)
            problem = f"the chat template is not valid Jinja: {error}"
            found = None if line is None else f"line {line}"
    if problem is not None:
        raise file.error(problem, key, found=found, hint=_OTHER_TEMPLATE) from None
