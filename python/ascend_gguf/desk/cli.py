"""The command line of ``ascend-gguf``."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

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
    "plan": (
        "ascend-gguf plan Qwen3-30B-A3B-Q4_K_M.gguf --chip 910B3 --count 4",
        "ascend-gguf plan unsloth/Qwen3-32B-GGUF:Q4_K_M --chip 310P3 --count 2 --memory 48",
        "ascend-gguf plan model.gguf --plot plan.png",
    ),
    "tune": (
        "ascend-gguf tune Qwen3-14B-Q4_K_M.gguf",
        "ascend-gguf tune unsloth/Qwen3-30B-A3B-GGUF:Q4_K_M --tp-size 4 --ep-size 4",
        "ascend-gguf tune model.gguf --dtype float16 --seconds 30",
    ),
    "doctor": ("ascend-gguf doctor", "ascend-gguf doctor --json > report.json"),
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
    plan = _command(
        commands, "plan", "how much of a machine a model takes, for every tp, ep and pp"
    )
    _add_model(plan)
    plan.add_argument("--chip", default="910B3", help="%(default)s by default; see docs/desk.md")
    plan.add_argument("--count", type=int, default=1, help="devices; %(default)s by default")
    plan.add_argument(
        "--memory", type=float, metavar="GB", help="of a device; the chip's by default"
    )
    plan.add_argument(
        "--mem-fraction-static",
        type=float,
        default=0.8,
        metavar="F",
        help="share for weights and KV cache, as the server's option; %(default)s by default",
    )
    plan.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    plan.add_argument("--plot", type=Path, metavar="FILE", help="draw a picture (needs matplotlib)")
    plan.set_defaults(run=_plan)
    tune = _command(commands, "tune", "time the layouts of weights here, for loading to obey")
    _add_model(tune)
    tune.add_argument("--tp-size", type=int, default=1, metavar="N", help="as the server's option")
    tune.add_argument("--ep-size", type=int, default=1, metavar="N", help="as the server's option")
    tune.add_argument("--pp-size", type=int, default=1, metavar="N", help="as the server's option")
    tune.add_argument("--dtype", choices=("bfloat16", "float16", "float32"))
    tune.add_argument(
        "--chunk", type=int, metavar="N", help="tokens of a prompt; 2048 on an NPU, 512 on a CPU"
    )
    tune.add_argument(
        "--seconds", type=float, default=120, help="the most it may take; %(default)g by default"
    )
    tune.set_defaults(run=_tune)
    doctor = _command(commands, "doctor", "whether this installation is sound, and what to do")
    doctor.set_defaults(run=_doctor)
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


def _check_sizes(asked: argparse.Namespace, **most: float) -> None:
    """Options that are above 0, and no more than something."""
    for name, limit in most.items():
        value = getattr(asked, name)
        if value is not None and not 0 < value <= limit:
            option = f"--{name.replace('_', '-')} {value:g}"
            raise GGUFError(option, expected=f"above 0, and at most {limit}")


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


def _plan(asked: argparse.Namespace) -> int:
    import torch

    from ascend_gguf.desk import inspection, plan, source
    from ascend_gguf.desk.chips import chip_named

    inspection.skip_docstrings()
    chip = chip_named(asked.chip)
    memory: float = asked.memory if asked.memory is not None else chip.memory or 0
    _check_sizes(asked, count=1024, memory=4096, mem_fraction_static=1)
    # A 310P has no bfloat16.
    dtype = asked.dtype or ("float16" if chip.name.startswith("310P") else "bfloat16")
    with source.opened(asked.model, asked.revision) as file:
        found = plan.plan(
            file, chip, asked.count, memory, asked.mem_fraction_static, getattr(torch, dtype)
        )
    found["command"] = plan.command(found, asked.model)
    if asked.plot:
        plan.draw(found, asked.plot)
    if asked.json:
        _print_json(found)
    else:
        print(plan.lines(found, asked.model))
    return 0 if found["command"] else 1


def _tune(asked: argparse.Namespace) -> int:
    import torch

    from ascend_gguf.desk import doctor, source, tune
    from ascend_gguf.desk.weights import Ranks

    _check_sizes(asked, tp_size=1024, ep_size=1024, pp_size=1024, seconds=3600, chunk=1 << 16)
    with source.opened(asked.model, asked.revision) as file, doctor.quiet():
        found = tune.tune(
            file,
            Ranks(asked.tp_size, asked.ep_size, asked.pp_size),
            getattr(torch, asked.dtype) if asked.dtype else None,
            asked.chunk,
            asked.seconds,
            lambda said: print(said, file=sys.stderr),
        )
    if asked.json:
        _print_json(found)
    else:
        print(tune.lines(found))
    return 0


def _doctor(asked: argparse.Namespace) -> int:
    from dataclasses import asdict

    from ascend_gguf.desk import doctor

    findings = []
    for finding in doctor.examine():
        findings.append(finding)
        if not asked.json:
            print(doctor.line(finding), flush=True)
    if asked.json:
        _print_json([asdict(finding) for finding in findings])
    return 1 if any(finding.state == "wrong" for finding in findings) else 0
