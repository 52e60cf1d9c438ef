"""Resolves command lines as the engine's main process does, without starting anything.

A process that is forked from a :class:`serving.Zygote` does it; :class:`Resolver` talks to it.
"""

from __future__ import annotations

import socket
import tempfile
from multiprocessing.connection import Connection

from serving import START_TIMEOUT, Zygote, stop_group


class Resolver:
    """One process for many command lines."""

    def __init__(self, zygote: Zygote) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="resolver-")
        address = f"{self._folder.name}/socket"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            listener.settimeout(START_TIMEOUT)
            order = {"log": f"{self._folder.name}/log", "environment": {}, "resolver": address}
            self._pid = zygote.fork(order)
            self._connection = Connection(listener.accept()[0].detach())

    def __call__(self, *arguments: str) -> tuple[str, str]:
        """The error that ends the command: its class and message; empty if there is none."""
        kind, message, _ = self._ask(arguments)
        return kind, message

    def paths(self, *arguments: str) -> dict[str, str]:
        """What the engine goes on with."""
        kind, message, fields = self._ask(arguments)
        assert not kind, message
        return fields

    def close(self) -> None:
        self._connection.close()
        stop_group(self._pid, ask=False)
        self._folder.cleanup()

    def _ask(self, arguments: tuple[str, ...]) -> tuple[str, str, dict[str, str]]:
        self._connection.send(arguments)
        return self._connection.recv()
