"""GSM8K: the test problems, the prompt, and the number in an answer."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import urllib.request
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import NamedTuple

import fetch
import setup_env

sys.path.append(str(setup_env.CHECKOUT / "test"))
from shared_data import shared_path  # noqa: E402

URL = (
    "https://raw.githubusercontent.com/openai/grade-school-math/master/"
    "grade_school_math/data/test.jsonl"
)
SHA256 = "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"

#: Ends an answer if the model continues with a next question.
STOP = ("\nQuestion:",)

#: A minus behind a digit is an operator.
_NUMBER = r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?"


class DataError(Exception):
    """No problems to ask; the message is one line for the user."""


class Problem(NamedTuple):
    """A question, and an answer whose last line is ``#### 42``."""

    question: str
    answer: str


def problems(path: Path) -> list[Problem]:
    """The problems of a JSON Lines file with ``question`` and ``answer``.

    Raises:
        DataError: a line is not such an object.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            entry = json.loads(line)
            found.append(Problem(entry["question"], entry["answer"]))
        except (ValueError, KeyError, TypeError):
            raise DataError(
                f"{path}, line {number}: expected an object with question and answer"
            ) from None
    return found


def test_set() -> Path:
    """The file of the test problems: a copy beside the repository, or else the one in the user's
    cache, fetched the first time.

    Raises:
        DataError: the file cannot be fetched, or has the wrong checksum.
    """
    if shared := shared_path("gsm8k", "test.jsonl"):
        return shared
    path = fetch.cache() / "gsm8k-test.jsonl"
    if path.exists() and _digest(path.read_bytes()) == SHA256:
        return path
    try:
        with urllib.request.urlopen(URL, timeout=60) as reply:  # noqa: S310
            data = reply.read()
    except OSError as error:
        raise DataError(f"{URL}: {error}; pass a copy of the file with DATA=") from None
    if _digest(data) != SHA256:
        raise DataError(f"{URL}: its SHA-256 is {_digest(data)}, expected {SHA256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def prompt(question: str, examples: Sequence[Problem]) -> str:
    """A few-shot prompt: examples with answers, then the question, for the model to complete."""
    shown = [f"Question: {example.question}\nAnswer: {example.answer}\n" for example in examples]
    return "\n".join([*shown, f"Question: {question}\nAnswer:"])


def final_number(answer: str) -> Decimal | None:
    """The number behind ``####``, or else the last one; None if there is none."""
    marked = re.search(rf"####\s*\$?\s*({_NUMBER})", answer)
    numbers = [marked[1]] if marked else re.findall(_NUMBER, answer)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
