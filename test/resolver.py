"""Resolves command lines as the engine's main process does, without starting anything.

Run as a script, this file is such a process; :class:`Resolver` talks to it.
"""

from __future__ import annotations

import json
import subprocess
import sys

_FIELDS = (
    *("model_path", "tokenizer_path", "load_format", "quantization", "context_length"),
    *("disable_overlap_schedule", "served_model_name"),
    *(f"speculative_draft_{name}" for name in ("model_path", "model_quantization", "load_format")),
)


class Resolver:
    """One process for many command lines: importing the engine takes seconds."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

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
        self._process.stdin.close()
        self._process.wait(20)

    def _ask(self, arguments: tuple[str, ...]) -> list:
        print(json.dumps(arguments), file=self._process.stdin, flush=True)
        for line in self._process.stdout:
            if line.startswith("["):
                return json.loads(line)
        raise AssertionError("the resolver ended")


def _main() -> None:
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.plugins import load_plugins
    from sglang.srt.server_args import prepare_server_args

    load_plugins()
    for arguments in map(json.loads, sys.stdin):
        try:
            server_args = prepare_server_args(arguments)
            server_args.resolve_once()
            server_args.check_server_args()
            found = resolving_view(server_args)
            reply = ["", "", {name: getattr(found, name) for name in _FIELDS}]
        except BaseException as error:
            reply = [type(error).__name__, str(error), {}]
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    _main()
