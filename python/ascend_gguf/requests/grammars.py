"""Size limits of grammars for structured output: all requests wait while one is compiled.

The limits were measured with xgrammar 0.2.7: within them a grammar compiles in seconds and a step
takes less than a second; beyond them both soon take minutes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from re import _constants as sre  # type: ignore[attr-defined]  # no part of re in typeshed
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from ascend_gguf.requests.values import RequestError, text

#: Characters of each kind of grammar.
_LONGEST = {"regex": 8192, "ebnf": 2**15, "json_schema": 2**18, "structural_tag": 2**18}

#: Optional or repeated parts; nesting depth of a schema; its optional properties.
_MOST_REPEATS, _DEEPEST, _MOST_OPTIONAL = 256, 100, 1000

#: Product of nested repetitions, and what an unbounded repetition counts.
_MOST_NESTED, _ENDLESS = 10_000, 1000

_RANGE = re.compile(r"\{\s*(\d*)\s*,\s*(\d*)\s*\}")


def check_grammar(field: str, value: Any) -> Any:
    """Return the grammar of ``regex``, ``ebnf``, ``json_schema`` or ``structural_tag``.

    Raises:
        RequestError: it is not text, or too large to compile quickly.
    """
    text(field, value, _LONGEST[field])
    if field == "regex":
        _check_regex(field, value)
    elif field == "ebnf":
        _check_ebnf(field, value)
    else:
        _check_schema(field, value)
    return value


def _check_regex(field: str, pattern: str) -> None:
    _check_repeats(field, pattern, len(re.findall(r"[*+?{]", pattern)))
    try:
        nested = _nested(_parser.parse(pattern))
    except (re.error, OverflowError, RecursionError):
        nested = _product_of_ranges(pattern)  # not Python syntax: the engine reports the error
    _check_nested(field, pattern, nested)


def _check_ebnf(field: str, grammar: str) -> None:
    outside = re.sub(r'"(\\.|[^"\\\n])*"|\[(\\.|[^\]\\\n])*\]', "", grammar)
    _check_repeats(field, grammar, len(re.findall(r"[*+?{]", outside)))
    _check_nested(field, grammar, _product_of_ranges(outside))


def _check_schema(field: str, schema: str) -> None:
    depth, deepest = 0, 0
    for bracket in re.findall(r'"(?:\\.|[^"\\])*"|[\[\]{}]', schema):
        depth += (bracket in ("{", "[")) - (bracket in ("}", "]"))
        deepest = max(deepest, depth)
    if deepest > _DEEPEST:
        raise RequestError(field, deepest, f"{_DEEPEST} levels", "nested too deeply")
    try:
        parsed = json.loads(schema)
    except ValueError as error:
        raise RequestError(field, schema, "JSON", f"not JSON: {error}") from None
    optional = 0
    for part in _objects(parsed):
        patterns = [part.get("pattern"), *_keys(part.get("patternProperties"))]
        for pattern in patterns:
            if isinstance(pattern, str):
                text(f"{field}: pattern", pattern, _LONGEST["regex"])
                _check_regex(f"{field}: pattern", pattern)
        optional += len(_keys(part.get("properties")))
    if optional > _MOST_OPTIONAL:
        raise RequestError(field, optional, f"{_MOST_OPTIONAL} properties", "too many")


def _objects(value: Any) -> Iterator[dict]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _objects(item)


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _check_repeats(field: str, grammar: str, count: int) -> None:
    if count > _MOST_REPEATS:
        raise RequestError(
            field,
            f"{count} in {len(grammar)} characters",
            f"{_MOST_REPEATS}",
            "too many repeated or optional parts",
        )


def _check_nested(field: str, grammar: str, nested: int) -> None:
    if nested > _MOST_NESTED:
        raise RequestError(field, grammar, f"{_MOST_NESTED} in total", "nested repetitions")


def _product_of_ranges(grammar: str) -> int:
    """Product of the two widest repetitions: rules may nest them."""
    widths = [int(most or 0) if least != most else 1 for least, most in _RANGE.findall(grammar)]
    first, second = sorted([1, 1, *widths])[-2:]
    return first * second


def _nested(parsed: _parser.SubPattern) -> int:
    """The largest product of nested repetitions; 0 without any."""
    return max((_nested_in(*part)[1] for part in parsed), default=0)


def _nested_in(operation: Any, argument: Any) -> tuple[int, int]:
    """The widest repetition in a part, and the largest product of nested repetitions."""
    if operation in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
        least, most, inside = argument
        widths, products = _widest(inside)
        if most is sre.MAXREPEAT:  # a loop: its iterations share states
            return max(widths, _ENDLESS), products
        width = int(most) if least != most else 1
        return max(width, 1) * max(widths, 1), max(products, int(most) * widths)
    if operation is sre.SUBPATTERN:
        return _widest(argument[-1])
    if operation is sre.BRANCH:
        parts = [_widest(branch) for branch in argument[1]]
        return max(width for width, _ in parts), max(product for _, product in parts)
    return 0, 0


def _widest(parsed: _parser.SubPattern) -> tuple[int, int]:
    parts = [_nested_in(*part) for part in parsed] or [(0, 0)]
    return max(width for width, _ in parts), max(product for _, product in parts)
