"""Refuse regular expressions whose search may backtrack too much."""

from __future__ import annotations

import re
from re import _constants as sre  # type: ignore[attr-defined]  # no part of re in typeshed
from re import _parser  # type: ignore[attr-defined]
from typing import Any

from ascend_gguf.requests.values import RequestError, text

#: Characters of an answer to assume, and the most ways in which a pattern may match them: two
#: unbounded parts are fine, a nested repetition is not.
_ANSWER, _WAYS = 1000, 10**8

_LONGEST = 256  # bytes, as the engine's own MAX_STOP_REGEX_LEN
_REPEATS = (sre.MAX_REPEAT, sre.MIN_REPEAT)


def check_pattern(field: str, value: object) -> None:
    """Raises RequestError: not a regular expression, or one whose search may not end.

    Python's search tries each way to match in turn.  This bounds their number from the parsed
    pattern: alternatives of a part times those of the next, to the power of its repetitions.
    """
    value = text(field, value)
    if not 0 < len(value.encode()) <= _LONGEST:
        raise RequestError(field, value, f"1 to {_LONGEST} bytes")
    try:
        parsed = _parser.parse(value)
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        problem = f"not a regular expression: {error or type(error).__name__}"
        raise RequestError(field, value, "Python's syntax", problem) from None
    if _ways(parsed) > _WAYS:
        raise RequestError(
            field,
            value,
            "no nested repetitions, and at most two unbounded ones",
            "may search without end",
        )


def _ways(parsed: _parser.SubPattern) -> int:
    """The most ways in which the parts may divide an answer (capped)."""
    ways = 1
    for operation, argument in parsed:
        ways *= _ways_of(operation, argument)
        if ways > _WAYS:
            return _WAYS + 1
    return ways


def _ways_of(operation: object, argument: Any) -> int:
    if operation is sre.SUBPATTERN:
        return _ways(argument[-1])
    if operation is sre.BRANCH:
        ways = [_ways(branch) for branch in argument[1]]
        firsts = {
            branch[0] for branch in argument[1] if len(branch) and branch[0][0] is sre.LITERAL
        }
        return max(ways) if len(firsts) == len(ways) else sum(ways)
    if operation is sre.GROUPREF_EXISTS:
        return sum(_ways(part) for part in argument[1:] if part is not None)
    if operation in (sre.ASSERT, sre.ASSERT_NOT):
        return _ways(argument[1])
    if operation is sre.ATOMIC_GROUP:
        return _ways(argument)
    if operation in (*_REPEATS, sre.POSSESSIVE_REPEAT):
        least, most, part = argument
        inner = _ways(part)
        most = min(int(most), _ANSWER)
        least = min(int(least), most)
        if inner > 1 and most > 1:  # each repetition matches in each of its ways
            return _WAYS + 1 if most * (inner.bit_length() - 1) > 40 else inner**most
        return inner * (most - least + 1)
    return 1
