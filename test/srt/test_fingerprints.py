"""The engine's functions are known by their source."""

from __future__ import annotations

import ast

import pytest
import sglang

import fingerprints as command
from ascend_gguf.srt import fingerprints


def test_the_installed_engine_is_known():
    """``make fingerprints`` was called since what is hooked or overridden has changed."""
    expected = command.taken(fingerprints.installed())
    known = fingerprints.known()
    # A build that is no release has the functions of one.
    assert expected in (
        [known[sglang.__version__]] if sglang.__version__ in known else known.values()
    )
    assert all(release.keys() == expected.keys() for release in known.values())


SOURCE = '''
class Kept:
    def method(self, x):
        """Says what."""
        # And why.
        return x  +  "#1"
'''


def of_method(source: str) -> str | None:
    (kept,) = ast.parse(source).body
    return fingerprints.fingerprint(source, kept.body[0])


@pytest.mark.parametrize(
    ("old", "new", "is_alike"),
    [
        ("Says what.", "Says it otherwise.", True),
        ("        # And why.\n", "", True),
        ("x  +  ", "x + ", True),
        ('"#1"', '"#2"', False),
        ("(self, x)", "(self, x, y=1)", False),
        ("    def method", "    @property\n    def method", False),
    ],
)
def test_what_a_fingerprint_sees(old, new, is_alike):
    assert (of_method(SOURCE.replace(old, new, 1)) == of_method(SOURCE)) is is_alike
