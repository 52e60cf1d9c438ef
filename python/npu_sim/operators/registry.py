"""The table from aclnn entry point to simulated operator."""

from __future__ import annotations

from collections.abc import Callable

from .view import viewed

# aclnn name -> callable.  `callable.signature` says how the C arguments before workspace and
# executor are to be read, one letter each:
#   t tensor or null   T tensor list   I int array   F float array   s scalar   S string
#   i int64   w int32   b bool   d double   f float
OPERATORS: dict[str, Callable] = {}


def aclnn(name: str, signature: str, views: bool = True):
    """Registers the decorated function as the aclnn entry point `name`.

    views: it takes a View of each tensor, not what the dispatch passes.
    """

    def register(function):
        function = viewed(function) if views else function

        def entry(*arguments):
            return function(*arguments)

        entry.__name__ = entry.__qualname__ = name
        entry.__doc__, entry.__wrapped__, entry.signature = function.__doc__, function, signature
        assert name not in OPERATORS, name
        OPERATORS[name] = entry
        return function

    return register
