"""Code that runs before and after the first import of a module, without importing it early."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable


class AroundImport(importlib.abc.MetaPathFinder):
    """Calls ``before()`` and ``after(module)`` around the first import of ``name``."""

    def __init__(self, name: str, after: Callable, before: Callable | None = None):
        self._name, self._before, self._after = name, before, after

    @classmethod
    def of(cls, name: str, after: Callable, before: Callable | None = None) -> None:
        if name in sys.modules:
            after(sys.modules[name])
        else:
            sys.meta_path.insert(0, cls(name, after, before))

    def find_spec(self, name, path=None, target=None):
        if name != self._name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            if self._before:
                self._before()
            execute(module)
            self._after(module)

        spec.loader.exec_module = exec_module
        return spec
