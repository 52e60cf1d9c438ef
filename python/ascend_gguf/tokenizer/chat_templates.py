"""The chat templates of a GGUF file: one, or several by name."""

from __future__ import annotations

from ascend_gguf.errors import GGUFError
from ascend_gguf.reader import GGUFFile

_KEY = "tokenizer.chat_template"

_OTHER_TEMPLATE = "Give another one with --chat-template FILE.jinja."


def chat_templates(file: GGUFFile, check: bool = True) -> str | dict[str, str] | None:
    """The template, or all of them by name where the file has several.

    Args:
        check: refuse a template that cannot be used; if false, there is none.

    Raises:
        GGUFError: a template is no text, or does not parse.
    """
    named = {
        key.removeprefix(f"{_KEY}."): template
        for key, template in file.metadata.items()
        if key.startswith(f"{_KEY}.")
    }
    default = file.metadata.get(_KEY)
    try:
        for name, template in named.items():
            _check(file, f"{_KEY}.{name}", template)
        if default is not None:
            _check(file, _KEY, default)
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


def _check(file: GGUFFile, key: str, template: object) -> None:
    from transformers.utils.chat_template_utils import _compile_jinja_template

    problem = found = None
    if not isinstance(template, str):
        problem, found = "the chat template is no text", f"{template!r:.80}"
    else:
        try:
            _compile_jinja_template(template)
        except Exception as error:  # whatever Jinja raises: a few templates end in a RecursionError
            line = getattr(error, "lineno", None)
            problem = f"the chat template does not parse: {error}"
            found = None if line is None else f"line {line}"
    if problem is not None:
        raise GGUFError(
            problem, file=file.files[0], key=key, found=found, hint=_OTHER_TEMPLATE
        ) from None
