"""The command line of ``ascend-gguf``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from ascend_gguf import __version__
from ascend_gguf.errors import GGUFError, shown


def _up_to(most: float, kind: type[int] | type[float]) -> Callable[[str], float]:
    """The type of an option that is above 0, and no more than something."""

    def number(typed: str) -> float:
        value = kind(typed)
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{typed} (expected above 0, and at most {most})")
        return value

    number.__name__ = kind.__name__  # argparse says it of what is no number
    return number


_MODEL: dict[str, dict[str, Any]] = {
    "model": {
        "metavar": "MODEL",
        "help": "a GGUF file, any file of a split model, a folder, or a model on the Hugging Face "
        "Hub (owner/repo:Q4_K_M), of which the header alone is read",
    },
    "--revision": {"help": "branch, tag or commit of a model on the Hub"},
}
_DTYPE = {"choices": ("bfloat16", "float16", "float32"), "help": "that the model computes in"}
_RANKS = {"type": _up_to(1024, int), "default": 1, "metavar": "N", "help": "as the server's option"}

#: Of each command what it does, its options, and examples.  Its module has ``run``.
COMMANDS: dict[str, tuple[str, dict[str, dict[str, Any]], tuple[str, ...]]] = {
    "inspect": (
        "what a file is, and whether and how it is served",
        _MODEL,
        (
            "ascend-gguf inspect Qwen3-14B-Q4_K_M.gguf",
            "ascend-gguf inspect unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M",
            "ascend-gguf inspect models/qwen3 --json",
        ),
    ),
    "plan": (
        "how much of a machine a model takes, for every tp, ep and pp",
        {
            **_MODEL,
            "--chip": {"default": "910B3", "help": "%(default)s by default; see docs/desk.md"},
            "--count": {"type": _up_to(1024, int), "default": 1, "help": "devices; 1 by default"},
            "--memory": {
                "type": _up_to(4096, float),
                "metavar": "GB",
                "help": "of a device; the chip's by default",
            },
            "--mem-fraction-static": {
                "type": _up_to(1, float),
                "default": 0.8,
                "metavar": "F",
                "help": "share for weights and KV cache, as the server's option; %(default)s by "
                "default",
            },
            "--dtype": _DTYPE,
            "--plot": {
                "type": Path,
                "metavar": "FILE",
                "help": "draw a picture (needs matplotlib)",
            },
        },
        (
            "ascend-gguf plan Qwen3-30B-A3B-Q4_K_M.gguf --chip 910B3 --count 4",
            "ascend-gguf plan unsloth/Qwen3-32B-GGUF:Q4_K_M --chip 310P3 --count 2 --memory 48",
            "ascend-gguf plan model.gguf --plot plan.png",
        ),
    ),
    "tune": (
        "time the layouts of weights here, for loading to obey",
        {
            **_MODEL,
            "--tp-size": _RANKS,
            "--ep-size": _RANKS,
            "--pp-size": _RANKS,
            "--dtype": _DTYPE,
            "--chunk": {
                "type": _up_to(1 << 16, int),
                "metavar": "N",
                "help": "tokens of a prompt; 2048 on an NPU, 512 on a CPU",
            },
            "--seconds": {
                "type": _up_to(3600, float),
                "default": 120,
                "help": "the most it may take; %(default)g by default",
            },
        },
        (
            "ascend-gguf tune Qwen3-14B-Q4_K_M.gguf",
            "ascend-gguf tune unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M --tp-size 4 --ep-size 4",
            "ascend-gguf tune model.gguf --dtype float16 --seconds 30",
        ),
    ),
    "doctor": (
        "whether this installation is sound, and what to do",
        {},
        ("ascend-gguf doctor", "ascend-gguf doctor --json > report.json"),
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 if something is wrong, 2 for a bad request."""
    try:
        asked = _parser().parse_args(arguments)
        if asked.command == "inspect":
            _import_later("torch")  # which takes a second, and is not needed
        found, lines, is_good = import_module(f"ascend_gguf.desk.{asked.command}").run(asked)
        # Text of a file may hold lone surrogates, which ASCII escapes.
        if asked.json:
            print(json.dumps(found, indent=2, ensure_ascii=True, default=shown))
        elif lines is not None:
            print(lines)
        return 0 if is_good else 1
    except GGUFError as error:
        command = next((word for word in arguments or sys.argv[1:] if word in COMMANDS), "")
        print(f"{f'ascend-gguf {command}'.rstrip()}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # | head
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        problem = message.removeprefix("argument ")
        raise GGUFError(problem, hint=f"See `{self.prog} --help`.")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="ascend-gguf", description="GGUF models on Ascend NPUs with SGLang.")
    parser.add_argument("--version", action="version", version=f"ascend-gguf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, options, examples) in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=summary,
            description=f"{summary[0].upper()}{summary[1:]}.",
            epilog="\n".join(("examples:", *(f"  {line}" for line in examples))),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        for option, details in options.items():
            command.add_argument(option, **details)
        command.add_argument("--json", action="store_true", help="print JSON")
    return parser


class _Later(ModuleType):
    """A module that is imported when something of it is used."""

    def __getattr__(self, name: str) -> object:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(import_module(self.__name__), name)


def _import_later(name: str) -> None:
    """Let ``import name`` cost nothing, in modules that are imported from now on."""
    if name not in sys.modules and (spec := find_spec(name)) is not None:
        sys.modules[name] = _Later(name)
        sys.modules[name].__spec__ = spec
