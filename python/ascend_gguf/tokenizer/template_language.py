"""The language of chat templates: Jinja, with what transformers adds to it.

transformers compiles templates too, but takes a second to import.  Source:
``transformers.utils.chat_template_utils._cached_compile_jinja_template``; a test compares.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateError, ext, nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment


class _Generation(ext.Extension):
    """``{% generation %}``, which marks the text of the model and changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    """Unlike Jinja's own filter, with the characters of HTML as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


@functools.cache
def environment() -> ImmutableSandboxedEnvironment:
    """What templates are compiled in."""
    found = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
    )
    found.filters["tojson"] = _to_json
    found.globals["raise_exception"] = _refuse
    found.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return found


@functools.lru_cache(maxsize=16)
def compiled(template: str) -> Template:
    """A chat template; raises what Jinja does, or RecursionError, for one that is not valid."""
    return environment().from_string(template)
