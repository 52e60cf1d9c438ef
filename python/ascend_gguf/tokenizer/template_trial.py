"""Try a chat template in a process of its own, with limits of time and memory.

A template is a program by the author of the file.  Jinja's sandbox limits everything but time and
memory, and computes constants (``9 ** (9 ** 9)``) already when it compiles.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import warnings
from functools import lru_cache
from select import select
from typing import Any

from ascend_gguf.tokenizer.template_language import compiled

#: Limits for a short chat; a real template takes some milliseconds.
CPU_SECONDS, MEGABYTES = 2, 256

#: Wall-clock limit, for a busy machine.
_SECONDS = 30.0

_RENDERED, _NO_MEMORY = b"r", b"m"

_USER = {"role": "user", "content": "Hello"}
_CHAT = [{"role": "system", "content": "Be brief."}, _USER, {**_USER, "role": "assistant"}, _USER]
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_TOOLS: list[Any] = [{"type": "function", "function": _FUNCTION}]


@lru_cache(maxsize=16)
def endless(template: str) -> str | None:
    """The limit that a template exceeds, such as ``2 seconds``; None if it finishes.

    An error in the template counts as finished.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about other threads, which the trial does not use
        pid = os.fork()
    if pid == 0:
        _try(template, writer)
    os.close(writer)
    try:
        outcome = os.read(reader, 1) if select([reader], [], [], _SECONDS)[0] else b""
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    if outcome == _RENDERED:
        return None
    return f"{MEGABYTES} MB" if outcome == _NO_MEMORY else f"{CPU_SECONDS} seconds"


def _try(template: str, writer: int) -> None:
    """Render the template for two chats within limits, and exit the process."""
    try:
        _limit(resource.RLIMIT_CPU, CPU_SECONDS)  # the system kills the process then
        _limit(resource.RLIMIT_CORE, 0)
        with open("/proc/self/statm") as statm:
            pages = int(statm.read().split()[0])
        _limit(resource.RLIMIT_AS, pages * resource.getpagesize() + MEGABYTES * 2**20)
        outcome = _RENDERED
        try:
            _render(template)
        except MemoryError:
            outcome = _NO_MEMORY
        os.write(writer, outcome)
    finally:
        os._exit(0)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, hard))


def _render(template: str) -> None:
    for chat, tools in ((_CHAT[1:2], None), (_CHAT, _TOOLS)):
        try:
            compiled(template).render(
                messages=chat, tools=tools, documents=None, add_generation_prompt=True
            )
        except MemoryError:
            raise
        except Exception:  # templates raise for chats that they do not support
            continue
