"""The rooms of the package: imports run down, never up, and never in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import ascend_gguf

PACKAGE = Path(ascend_gguf.__file__).parent

#: From the ground up.  A room imports rooms of lower levels, none of its own or a higher one.
LEVELS = (
    ("errors",),
    ("ggml_types", "thread_pool", "memory"),
    ("codegen",),
    ("decoders",),
    ("reader",),
    ("architectures", "tokenizer", "hub", "requests"),
    ("torch_attention", "torch_state_space"),
    ("torch_delta_rule",),
    ("config", "generation_config", "overrides", "ranks"),
    ("servable",),
    ("weights",),
    ("npu", "cpu"),
    ("srt",),
    ("desk",),
)
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> set[str]:
    """What a file imports anywhere: in functions and for type checkers too."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # ``from package import module`` imports the module as well.
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
IMPORTS = {name: imported(ast.parse(path.read_text())) for name, path in FILES.items()}


def room(module: str) -> str | None:
    """The folder, or the file of the package itself; None for ``ascend_gguf/__init__.py``."""
    return module.split(".")[1] if "." in module else None


def arrows() -> list[tuple[str, str]]:
    """``(file, what it imports of the package)``."""
    found = [(name, other) for name, others in IMPORTS.items() for other in others & FILES.keys()]
    return [(name, other) for name, other in found if room(name) and room(other)]


def test_every_room_has_a_level():
    assert {room(name) for name in FILES} - {None} == LEVEL.keys()


def test_no_arrow_runs_up():
    up = [
        f"{name} -> {other}"
        for name, other in arrows()
        if room(name) != room(other) and LEVEL[room(name)] <= LEVEL[room(other)]
    ]
    assert not up


def test_no_circle():
    graph: dict[str, set[str]] = {name: set() for name in FILES}
    for name, other in arrows():
        # A room's own modules need not wait for its __init__, which only gathers their names.
        if name != other and not name.startswith(f"{other}."):
            graph[name].add(other)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_library_knows_no_engine():
    engines = {"sglang", "sgl_kernel", "sgl_kernel_npu", "npu_sim"}
    found = {
        name: others
        for name, all_names in IMPORTS.items()
        if room(name) != "srt" and (others := {n.partition(".")[0] for n in all_names} & engines)
    }
    assert not found


def test_imports_are_absolute():
    """What the tests above do not see."""
    for name, path in FILES.items():
        levels = [
            n.level for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom)
        ]
        assert not any(levels), name
