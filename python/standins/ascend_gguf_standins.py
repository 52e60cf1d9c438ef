"""Import-time stand-ins for packages that have no CPU build on the package index.

SGLang imports torchvision, torchaudio and sgl_kernel while it starts, also for text-only models on
a CPU that never call them.  ``make setup`` puts this folder at the *end* of the virtual
environment's search path, so a real installation of any of the three always wins.

A stand-in satisfies imports, annotations, subclassing and attribute look-ups.  Whatever is really
called raises ``NotImplementedError`` with the full dotted name of the missing thing.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import NoReturn


class _MissingType(type):
    """Metaclass of everything a stand-in exports: a type that cannot be called."""

    def __call__(cls, *args, **kwargs) -> NoReturn:
        # The attribute, not the class's own name: a subclass defined elsewhere reports its base.
        name = cls._stands_for
        raise NotImplementedError(
            f"{name} is a stand-in: {cls._reason} "
            f"Install the real {name.partition('.')[0]} to use it."
        )

    def __getattr__(cls, name: str) -> _MissingType:
        if name.startswith("__"):
            raise AttributeError(name)
        return _missing(cls.__module__, f"{cls.__qualname__}.{name}", cls._reason)

    def __getitem__(cls, parameters) -> _MissingType:
        """``Missing[int]`` in an annotation."""
        return cls


def _missing(module: str, qualname: str, reason: str) -> _MissingType:
    namespace = {
        "__module__": module,
        "__qualname__": qualname,
        "_stands_for": f"{module}.{qualname}",
        "_reason": reason,
    }
    return _MissingType(qualname.rpartition(".")[2], (), namespace)


class _SubmoduleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes every ``package.sub.module`` of a stand-in importable."""

    def __init__(self, package: str, reason: str) -> None:
        self._package = package
        self._reason = reason

    def find_spec(self, fullname, path=None, target=None):
        if fullname.startswith(self._package + "."):
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def exec_module(self, module: ModuleType) -> None:
        _export_missing(module, self._reason)


def _export_missing(module: ModuleType, reason: str) -> None:
    def __getattr__(name: str) -> _MissingType:
        # Dunder probes (``__version__``, ``__file__``) must look absent, not callable.
        if name.startswith("__"):
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        return _missing(module.__name__, name, reason)

    module.__getattr__ = __getattr__


def stand_in_for(package: str, reason: str) -> None:
    """Turn the already imported module ``package`` into a stand-in for the package of that name.

    ``reason`` completes the error of anything called: one sentence on why the real one is absent.
    Names that the module defines itself stay as they are.
    """
    _export_missing(sys.modules[package], reason)
    # Last on the meta path: submodules that exist as files are found first.
    sys.meta_path.append(_SubmoduleFinder(package, reason))
