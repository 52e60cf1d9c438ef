"""Packages of which only a part is here: the rest imports, and raises by name when it is used."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys


class _Missing:
    """Stands for one name; anything done with it but passing it around raises."""

    def __init__(self, name: str):
        self._name = name

    def _refuse(self, *args, **kwargs):
        raise NotImplementedError(f"{self._name} is not in the simulation")

    __call__ = __getitem__ = __iter__ = _refuse

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Missing(f"{self._name}.{name}")


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Last on the meta path, so that modules that exist as files are found first."""

    packages: set[str] = set()

    def find_spec(self, name, path=None, target=None):
        if "." in name and name.partition(".")[0] in self.packages:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def exec_module(self, module):
        missing_in(module.__name__)


def missing_in(module_name: str) -> None:
    """Makes unknown attributes and submodules of the module names that raise when they are used."""
    if not _Finder.packages:
        sys.meta_path.append(_Finder())
    _Finder.packages.add(module_name.partition(".")[0])

    def __getattr__(name: str):
        if name.startswith("__"):
            raise AttributeError(f"module {module_name!r} has no attribute {name!r}")
        return _Missing(f"{module_name}.{name}")

    sys.modules[module_name].__getattr__ = __getattr__
