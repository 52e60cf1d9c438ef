"""Arithmetic word problems of one or two steps, answered in GSM8K's format.

Every problem can be told held out or not from its text alone, so a model that is trained on the one
kind has never seen the other.  ``python -m counting.problems 300`` prints held-out ones.
"""

from __future__ import annotations

import json
import random
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

#: One problem in so many is held out of training.
HELD_OUT = 16

_NAMES = (
    *("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jack"),
    *("Kofi", "Lena", "Maria", "Noah", "Olga", "Peter", "Rosa", "Sam", "Tara", "Wei"),
)
_THINGS = (
    *("apples", "books", "cards", "coins", "cookies", "eggs", "flowers", "marbles"),
    *("oranges", "pencils", "shells", "stamps", "stickers", "stones", "toys", "tickets"),
)
_BOXES = ("bags", "baskets", "boxes", "jars")
_GAIN = ("finds", "buys", "gets")
_LOSS = ("loses", "sells", "gives away", "uses")


class Problem(NamedTuple):
    """A question, and its answer worked step by step to the line ``#### 42``."""

    question: str
    answer: str

    @property
    def sums(self) -> list[tuple[str, str]]:
        """Left and right side of the equations in the answer, as ``("12+7=", "19")``."""
        return re.findall(r"(\d+[-+*/]\d+=)(\d+)", self.answer)

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.question.encode()) % HELD_OUT == 0


class _Draw:
    """Random names and numbers of one problem."""

    def __init__(self, rng: random.Random) -> None:
        self.number = rng.randint
        self.name, self.other = rng.sample(_NAMES, 2)
        self.things = rng.choice(_THINGS)
        self.boxes = rng.choice(_BOXES)
        self.gains, self.loses = rng.choice(_GAIN), rng.choice(_LOSS)


def _more(d: _Draw) -> tuple[str, list[str]]:
    a, b = d.number(2, 30), d.number(2, 12)
    return (
        f"{d.name} has {a} {d.things} and {d.gains} {b} more. How many {d.things} does {d.name} "
        "have now?",
        [f"{d.name} has {a}+{b}={a + b} {d.things}."],
    )


def _fewer(d: _Draw) -> tuple[str, list[str]]:
    a = d.number(5, 30)
    b = d.number(2, a - 2)
    return (
        f"{d.name} has {a} {d.things} and {d.loses} {b} of them. How many {d.things} are left?",
        [f"{d.name} has {a}-{b}={a - b} {d.things} left."],
    )


def _boxes(d: _Draw) -> tuple[str, list[str]]:
    a, b = d.number(2, 6), d.number(2, 9)
    return (
        f"There are {a} {d.boxes} with {b} {d.things} in each. How many {d.things} are there?",
        [f"There are {a}*{b}={a * b} {d.things}."],
    )


def _share(d: _Draw) -> tuple[str, list[str]]:
    a, b = d.number(2, 6), d.number(2, 9)
    return (
        f"{d.name} shares {a * b} {d.things} equally among {a} friends. How many {d.things} does "
        "each friend get?",
        [f"Each friend gets {a * b}/{a}={b} {d.things}."],
    )


def _more_then_fewer(d: _Draw) -> tuple[str, list[str]]:
    a, b = d.number(2, 20), d.number(2, 10)
    c = d.number(2, a + b - 2)
    return (
        f"{d.name} has {a} {d.things}, {d.gains} {b} more and then {d.loses} {c}. How many "
        f"{d.things} does {d.name} have now?",
        [
            f"{d.name} has {a}+{b}={a + b} {d.things}.",
            f"Then there are {a + b}-{c}={a + b - c} {d.things}.",
        ],
    )


def _fewer_then_more(d: _Draw) -> tuple[str, list[str]]:
    a = d.number(5, 30)
    b, c = d.number(2, a - 2), d.number(2, 12)
    return (
        f"{d.name} has {a} {d.things}, {d.loses} {b} and then {d.gains} {c} more. How many "
        f"{d.things} does {d.name} have now?",
        [
            f"{d.name} has {a}-{b}={a - b} {d.things}.",
            f"Then there are {a - b}+{c}={a - b + c} {d.things}.",
        ],
    )


def _together(d: _Draw) -> tuple[str, list[str]]:
    a, b = d.number(2, 15), d.number(2, 12)
    return (
        f"{d.name} has {a} {d.things}. {d.other} has {b} more than {d.name}. How many {d.things} "
        "do they have together?",
        [
            f"{d.other} has {a}+{b}={a + b} {d.things}.",
            f"Together they have {a}+{a + b}={2 * a + b}.",
        ],
    )


def _boxes_and_more(d: _Draw) -> tuple[str, list[str]]:
    a, b, c = d.number(2, 6), d.number(2, 9), d.number(2, 9)
    return (
        f"{d.name} buys {a} {d.boxes} with {b} {d.things} in each and {d.gains} {c} more. How many "
        f"{d.things} does {d.name} have?",
        [
            f"In the {d.boxes} there are {a}*{b}={a * b} {d.things}.",
            f"{d.name} has {a * b}+{c}={a * b + c} {d.things}.",
        ],
    )


def _boxes_but_fewer(d: _Draw) -> tuple[str, list[str]]:
    a, b = d.number(2, 6), d.number(3, 9)
    c = d.number(2, min(a * b - 2, 15))
    return (
        f"{d.name} has {a} {d.boxes} with {b} {d.things} in each and {d.loses} {c} of them. How "
        f"many {d.things} are left?",
        [
            f"In the {d.boxes} there are {a}*{b}={a * b} {d.things}.",
            f"{d.name} has {a * b}-{c}={a * b - c} {d.things} left.",
        ],
    )


def _sell_the_rest(d: _Draw) -> tuple[str, list[str]]:
    b, left, price = d.number(2, 12), d.number(2, 9), d.number(2, 6)
    a = b + left
    return (
        f"{d.name} has {a} {d.things}, keeps {b} and sells the rest for {price} dollars each. How "
        f"many dollars does {d.name} make?",
        [
            f"{d.name} sells {a}-{b}={left} {d.things}.",
            f"{d.name} makes {left}*{price}={left * price} dollars.",
        ],
    )


def _buy_and_share(d: _Draw) -> tuple[str, list[str]]:
    friends, each = d.number(2, 6), d.number(2, 9)
    a = d.number(1, friends * each - 1)
    b = friends * each - a
    return (
        f"{d.name} has {a} {d.things} and {d.other} has {b}. They share them equally among "
        f"{friends} friends. How many {d.things} does each friend get?",
        [
            f"Together they have {a}+{b}={a + b} {d.things}.",
            f"Each friend gets {a + b}/{friends}={each} {d.things}.",
        ],
    )


KINDS: tuple[Callable[[_Draw], tuple[str, list[str]]], ...] = (
    *(_more, _fewer, _boxes, _share, _more_then_fewer, _fewer_then_more, _together),
    *(_boxes_and_more, _boxes_but_fewer, _sell_the_rest, _buy_and_share),
)


def problems(seed: int, held_out: bool) -> Iterator[Problem]:
    """Problems without end, the same for the same seed: held-out ones only, or none of them."""
    rng = random.Random(seed)
    while True:
        question, steps = rng.choice(KINDS)(_Draw(rng))
        result = re.findall(r"=(\d+)", steps[-1])[-1]
        problem = Problem(question, "\n".join([*steps, f"#### {result}"]))
        if problem.held_out == held_out:
            yield problem


def main() -> None:
    found: dict[str, Problem] = {}
    for problem in problems(seed=3, held_out=True):
        found.setdefault(problem.question, problem)
        if len(found) == int(sys.argv[1]):
            break
    for problem in found.values():
        print(json.dumps(problem._asdict()))


if __name__ == "__main__":
    main()
