"""Kernels compiled: the switch that prints them, the example in the docs, the release of LLVM."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from ascend_gguf import GGUFError
from ascend_gguf.codegen import I64, Kernel, pointer, store

ROOT = Path(__file__).parents[2]


def small(name: str) -> Kernel:
    return Kernel(name, lambda tile, out: store(out, tile + 7), out=pointer(I64))


@pytest.mark.parametrize(
    ("value", "shown", "hidden"),
    [
        ("ir", "define void @(one|two)", "globl"),
        ("asm", "globl\t(one|two)", "define"),
        ("ir:two", "define void @two", "@one"),
        ("asm:on", "globl\tone", "two"),
    ],
)
def test_printed(value: str, shown: str, hidden: str, monkeypatch, capfd) -> None:
    monkeypatch.setenv("ASCEND_GGUF_PRINT_CODE", value)
    small("one"), small("two")
    out, err = capfd.readouterr()
    assert not out
    assert len(re.findall(shown, err)) == (1 if ":" in value else 2)
    assert hidden not in err


def test_nothing_is_printed_by_default(capfd) -> None:
    small("quiet")
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_printed(monkeypatch) -> None:
    monkeypatch.setenv("ASCEND_GGUF_PRINT_CODE", "llvm")
    with pytest.raises(GGUFError, match="invalid value of ASCEND_GGUF_PRINT_CODE") as error:
        small("wrong")
    assert "ir or asm" in str(error.value)
    assert "\n" not in str(error.value)


def test_examples_of_the_docs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/codegen.md").read_text(), re.S)
    assert len(blocks) == 2
    exec("\n".join(blocks), {})


def test_release_of_llvmlite() -> None:
    """The upper bound is the release that these tests have run with."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (wanted,) = (d for d in dependencies if d.startswith("llvmlite"))
    major, below = map(int, re.search(r"<(\d+)\.(\d+)$", wanted).groups())
    assert tuple(map(int, version("llvmlite").split(".")[:2])) < (major, below)
