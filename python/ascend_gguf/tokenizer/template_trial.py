"""Whether a chat template comes to an end: tried in a process of its own.

A template is a program, and whoever made the file wrote it.  Jinja's sandbox keeps it from
everything but time and memory, and computes constants (``9 ** (9 ** 9)``) as soon as it compiles.
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

#: What a template may take for a short chat; a real one takes some milliseconds.
CPU_SECONDS, MEGABYTES = 2, 256

#: On a machine that is busy with something else.
_SECONDS = 30.0

_RENDERED, _NO_MEMORY = b"r", b"m"

_USER = {"role": "user", "content": "Hello"}
_CHAT = [{"role": "system", "content": "Be brief."}, _USER, {**_USER, "role": "assistant"}, _USER]
_FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}
_TOOLS: list[Any] = [{"type": "function", "function": _FUNCTION}]


@lru_cache(maxsize=16)
def endless(template: str) -> str | None:
    """What a template takes too much of, as the end of a sentence; None if it comes to an end.

    An error in the template is an end.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other threads, which the trial does not need
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
    """Render the template for two chats, within limits, and end the process."""
    try:
        _limit(resource.RLIMIT_CPU, CPU_SECONDS)  # the system ends the process then
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
    from transformers.utils.chat_template_utils import render_jinja_template

    for chat, tools in ((_CHAT[1:2], None), (_CHAT, _TOOLS)):
        try:
            render_jinja_template([chat], tools, chat_template=template, add_generation_prompt=True)
        except MemoryError:
            raise
        except Exception:  # templates refuse chats that they do not know
            continue
