"""Methods of the engine's objects that serve a GGUF model: a subclass for them, not for others.

The engine's classes stay as they are.  An object that serves a GGUF model gets a subclass of its
class, in which each overridden method calls ours with the engine's first, as an AROUND hook is
called: ``hook(original, self, ...)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from importlib import import_module
from types import FunctionType
from typing import Any

_PATCH = "ascend_gguf.srt"
_ENGINE = "sglang.srt"

#: (module below ``sglang.srt`` and, the same, below ``ascend_gguf.srt``; class and method; ours,
#: where its name is another)
OVERRIDES: tuple[tuple[str, str, str | None], ...] = (
    ("layers.activation", "SiluAndMul.forward_native", "silu_and_mul"),
    ("layers.activation", "GeluAndMul.forward_native", "gelu_and_mul"),
    ("layers.layernorm", "RMSNorm.forward_native", None),
    ("layers.layernorm", "GemmaRMSNorm.forward_native", "gemma_norm"),
    ("layers.layernorm", "Gemma3RMSNorm.forward_native", "gemma_norm"),
    ("layers.moe.topk", "TopK.forward_npu", None),
    ("layers.rotary_embedding.base", "RotaryEmbedding.forward_native", None),
)


def override(thing: Any) -> None:
    """Give an object the methods of :data:`OVERRIDES` for its class and the classes above."""
    _become(thing, _overridden(type(thing)))


def override_methods(thing: Any, **hooks: Callable) -> None:
    """Give an object the methods ``hooks``, by their names.

    Raises:
        AttributeError: the engine's class has no such method.
    """
    _become(thing, _subclass(type(thing), tuple(hooks.items())))


@functools.cache
def seeing(function: Callable, **ours: Callable) -> Callable:
    """The engine's ``function`` as if its module had these functions instead of its own.

    Raises:
        AttributeError: the function does not mention them.
    """
    code = function.__code__
    if missing := ours.keys() - set(code.co_names):
        raise AttributeError(f"{function.__qualname__} mentions no {', '.join(sorted(missing))}")
    found = FunctionType(
        code,
        function.__globals__ | ours,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    found.__kwdefaults__ = function.__kwdefaults__
    return found


def rows() -> Iterator[tuple[str, Callable, Callable]]:
    """Each row of :data:`OVERRIDES`: class and method, the engine's function and ours.

    Raises:
        ImportError, AttributeError: one of them is not there.
    """
    for module, target, name in OVERRIDES:
        cls, _, method = target.partition(".")
        engine = getattr(getattr(import_module(f"{_ENGINE}.{module}"), cls), method)
        yield target, engine, getattr(import_module(f"{_PATCH}.{module}"), name or method)


@functools.cache
def _overridden(cls: type) -> type:
    hooks = {
        target.partition(".")[2]: hook
        for target, engine, hook in rows()
        # A class below it may have another method of its own, which stays.
        if getattr(cls, target.partition(".")[2], None) is engine
    }
    return _subclass(cls, tuple(hooks.items()))


@functools.cache
def _subclass(cls: type, hooks: tuple[tuple[str, Callable], ...]) -> type:
    if not hooks:
        return cls
    methods = {name: _around(getattr(cls, name), hook) for name, hook in hooks}
    # Without slots of its own, so that objects of the class can become one of this.
    return type(cls)(cls.__name__, (cls,), {"__slots__": (), "__module__": __name__, **methods})


def _around(original: Callable, hook: Callable) -> Callable:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return hook(original, self, *args, **kwargs)

    return method


def _become(thing: Any, cls: type) -> None:
    object.__setattr__(thing, "__class__", cls)  # also of a frozen dataclass
