"""docs/troubleshooting.md has every message of the package, and no other."""

from __future__ import annotations

import re
from pathlib import Path

from messages import messages

PAGE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"


def _told() -> list[str]:
    """The first column of its tables of messages."""
    text = PAGE.read_text()
    tables = re.findall(r"^\| message \|.*\n\|[ -|]*\n((?:\|.*\n)+)", text, re.MULTILINE)
    return [re.match(r"\| (.*?) \|", row)[1] for table in tables for row in table.splitlines()]


def test_every_message_is_on_the_page():
    told = tuple(_told())
    missing = {message: place for message, place in messages().items() if _words(message)}
    missing = {message: place for message, place in missing.items() if not message.startswith(told)}
    assert not missing


def test_every_message_of_the_page_is_in_the_code():
    raised = messages()
    assert [row for row in _told() if not any(m.startswith(row) for m in raised)] == []


def _words(message: str) -> bool:
    """Whether it says something besides what is filled in."""
    return re.search(r"\w{3}", message) is not None
