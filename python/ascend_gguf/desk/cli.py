"""The command line of ``ascend-gguf``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ascend_gguf import __version__
from ascend_gguf.errors import GGUFError, shown

_MODEL = (
    "a GGUF file, any file of a split model, a folder, or a model on the Hugging Face Hub "
    "(owner/repo:Q4_K_M), of which the header alone is read"
)
_EXAMPLES = {
    "inspect": (
        "ascend-gguf inspect Qwen3-14B-Q4_K_M.gguf",
        "ascend-gguf inspect unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M",
        "ascend-gguf inspect models/qwen3 --json",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 if something is wrong, 2 for a bad request."""
    asked = _parser().parse_args(arguments)
    try:
        return asked.run(asked)
    except GGUFError as error:
        print(f"ascend-gguf {asked.command}: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # | head
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ascend-gguf", description="GGUF models on Ascend NPUs with SGLang."
    )
    parser.add_argument("--version", action="version", version=f"ascend-gguf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    inspect = _command(commands, "inspect", "what a file is, and whether and how it is served")
    _add_model(inspect)
    inspect.set_defaults(run=_inspect)
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, summary: str
) -> argparse.ArgumentParser:
    examples = "\n".join(f"  {line}" for line in _EXAMPLES[name])
    command = commands.add_parser(
        name,
        help=summary,
        description=f"{summary[0].upper()}{summary[1:]}.",
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    return command


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument("model", metavar="MODEL", help=_MODEL)
    command.add_argument("--revision", help="branch, tag or commit of a model on the Hub")


def _print_json(facts: object) -> None:
    # Text of a file may hold lone surrogates, which ASCII escapes.
    print(json.dumps(facts, indent=2, ensure_ascii=True, default=shown))


def _inspect(asked: argparse.Namespace) -> int:
    from ascend_gguf.desk import inspection, source

    inspection.skip_docstrings()
    with source.opened(asked.model, asked.revision) as file:
        facts = inspection.inspect(file)
    if asked.json:
        _print_json(facts)
    else:
        print(inspection.lines(facts))
    return 0 if True in facts["served"].values() else 1
