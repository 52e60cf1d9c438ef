"""The messages of the package, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import ascend_gguf

#: What raises or logs: functions of these names.
_TELLING = frozenset(("GGUFError", "error", "_error", "_refused", "_refusal", "warning"))


@cache
def messages() -> dict[str, str]:
    """Each message that ends a command, refuses a request or warns, and the module it is in.

    What is filled in is an ellipsis.
    """
    package = Path(ascend_gguf.__file__).parent
    found = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef):
                for message in _of_function(function):
                    found[message] = str(path.relative_to(package))
    return found


def _of_function(function: ast.FunctionDef) -> Iterator[str]:
    for call in ast.walk(function):
        if isinstance(call, ast.Call) and _name(call.func) in _TELLING:
            texts = (text for argument in call.args for text in _texts(argument, function))
            message = next((text for text in texts if " " in text), None)
            if message is None:
                continue
            first = next(a for a in call.args if any(" " in t for t in _texts(a, function)))
            yield from (text for text in _texts(first, function) if " " in text)


def _name(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _texts(value: ast.expr, function: ast.FunctionDef) -> list[str]:
    """What an argument may be: itself, or what is assigned to it."""
    match value:
        case ast.Constant(value=str(text)):
            return [_filled(text)]
        case ast.JoinedStr(values=parts):
            return [
                "".join(_filled(p.value) if isinstance(p, ast.Constant) else "…" for p in parts)
            ]
        case ast.IfExp(body=yes, orelse=no):
            return _texts(yes, function) + _texts(no, function)
        case ast.Name(id=name):
            return [t for given in _assigned(name, function) for t in _texts(given, function)]
        case _:
            return []


def _filled(text: str) -> str:
    for hole in ("%s", "%d", "%g", "%r", "%.1f"):
        text = text.replace(hole, "…")
    return text


def _assigned(name: str, function: ast.FunctionDef) -> Iterator[ast.expr]:
    for node in ast.walk(function):
        if not isinstance(node, ast.Assign):
            continue
        for target in node.targets:
            match target, node.value:
                case ast.Name(id=found), value if found == name:
                    yield value
                case ast.Tuple(elts=targets), ast.Tuple(elts=values):
                    pairs = zip(targets, values, strict=True)
                    yield from (v for t, v in pairs if isinstance(t, ast.Name) and t.id == name)
