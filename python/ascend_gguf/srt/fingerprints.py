"""Whether the engine's functions are those that the patch was written for.

What a release calls itself says little: images hold git builds, editable installs and checkouts
without a tag.  So each function that is hooked or overridden is known by a fingerprint of its
source, for every release that the tests run against (``fingerprints.json``), and an engine whose
functions are all known is taken, whatever its version.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import io
import json
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path

#: A function of the engine: its module below ``sglang.srt``, and its name there; the whole file
#: where the name is empty.
Target = tuple[str, str]

#: What :func:`known` reads; ``make fingerprints`` writes it.
KNOWN_FILE = Path(__file__).with_suffix(".json")


@functools.cache
def known() -> dict[str, dict[str, str | None]]:
    """Release -> target, as ``module:name`` -> fingerprint; null where it has no such function."""
    return json.loads(KNOWN_FILE.read_text())


def key(target: Target) -> str:
    return ":".join(target)


def changed(targets: Iterable[Target], folder: Path | None = None) -> list[str]:
    """Names of the functions that are in this engine as in no known release.

    A file that is a known release's own is not looked into: parsing all takes a second.

    Args:
        folder: as of :func:`fingerprints`.
    """
    targets = list(targets)
    files = fingerprints({(module, "") for module, _ in targets}, folder)
    others = [(m, name) for m, name in targets if files[m, ""] not in _known_of((m, ""))]
    return [
        f"{module}.{name}"
        for (module, name), found in fingerprints(others, folder).items()
        if found not in _known_of((module, name))
    ]


def may_lack(target: Target) -> bool:
    """Whether a known release has no such function, or one that it inherits."""
    return None in _known_of(target)


def _known_of(target: Target) -> set[str | None]:
    return {release[key(target)] for release in known().values() if key(target) in release}


def fingerprints(targets: Iterable[Target], folder: Path | None = None) -> dict[Target, str | None]:
    """Fingerprints of an engine's functions, without importing it; None where it lacks one.

    Args:
        folder: the engine's ``srt``; by default that of the ``sglang`` that would be imported.
    """
    folder = folder or installed()
    return {(module, name): _fingerprint(folder, module, name) for module, name in targets}


def fingerprint(source: str, node: ast.AST) -> str:
    """Of a function's or class's source, without comments, docstrings and white space."""
    lines = source.splitlines(keepends=True)
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    for start, stop in list(_left_out(node, lines, first)):
        for number in range(start[0], stop[0] + 1):
            line = lines[number - 1]
            begin = start[1] if number == start[0] else 0
            end = stop[1] if number == stop[0] else len(line)
            lines[number - 1] = line[:begin] + " " * (end - begin) + line[end:]
    text = "".join("".join(lines[first - 1 : node.end_lineno]).split())
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _left_out(
    node: ast.AST, lines: list[str], first: int
) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where docstrings and comments begin and end: line from 1, place in it from 0."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            head = inner.body[0]
            if isinstance(head, ast.Expr) and isinstance(head.value, ast.Constant):
                if isinstance(head.value.value, str):
                    yield (head.lineno, 0), (head.end_lineno, len(lines[head.end_lineno - 1]))
    # A method is indented: to something.
    head = "if 1:\n" if node.col_offset else "\n"
    text = head + "".join(lines[first - 1 : node.end_lineno])
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            (row, start), (_, stop) = token.start, token.end
            yield (row + first - 2, start), (row + first - 2, stop)


def _fingerprint(folder: Path, module: str, name: str) -> str | None:
    path = folder / f"{module.replace('.', '/')}.py"
    if not path.exists():
        return None
    if not name:
        return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    source, tree = _parsed(path)
    node = _find(tree, name)
    return fingerprint(source, node) if node is not None else None


@functools.lru_cache(maxsize=1)  # targets of a module are neighbours
def _parsed(path: Path) -> tuple[str, ast.Module]:
    source = path.read_text(encoding="utf-8")
    return source, ast.parse(source)


def _find(tree: ast.Module, name: str) -> ast.AST | None:
    node: ast.AST = tree
    for part in name.split("."):
        for child in node.body:
            kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
            if isinstance(child, kinds) and child.name == part:
                node = child
                break
        else:
            return None
    return node


def installed() -> Path:
    """The folder ``srt`` of the ``sglang`` that would be imported."""
    spec = importlib.util.find_spec("sglang")
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "srt"
