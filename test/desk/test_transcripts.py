"""The transcripts of the commands in docs/ are what the commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from ascend_gguf.desk.cli import COMMANDS, main
from real_models import MODELS

ROOT = Path(__file__).parents[2]


def transcripts(page: str) -> dict[str, tuple[list[str], list[str]]]:
    """Of each command its words, and the lines that it printed."""
    blocks = re.findall(r"```\n\$ ascend-gguf (.*)\n([^`]*(?:`[^`]+`[^`]*)*)```", page)
    return {words.split()[0]: (shlex.split(words), said.splitlines()) for words, said in blocks}


DESK = transcripts((ROOT / "docs" / "desk.md").read_text())


@pytest.mark.parametrize(
    "command, model", [("inspect", "smollm2-135m-Q4_1"), ("plan", "gemma3-270m-Q4_K_M")]
)
def test_they_are_real(monkeypatch, tmp_path, capsys, command, model):
    words, said = DESK[command]
    Path(tmp_path, words[1]).symlink_to(MODELS[model].path)
    monkeypatch.chdir(tmp_path)
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines() == said


def test_the_readme_has_each_or_parts_of_it():
    readme = transcripts((ROOT / "README.md").read_text())
    assert readme.keys() == DESK.keys() == COMMANDS.keys()
    for command, (words, said) in readme.items():
        assert words == DESK[command][0] and set(said) <= {*DESK[command][1], "..."}
