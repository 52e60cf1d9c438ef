"""``python -m npu_sim build`` and ``python -m npu_sim run [OPTIONS] -- COMMAND...``."""

from __future__ import annotations

import argparse
import os
import sys

from .build import build
from .environment import PRODUCTS, environment


def main() -> None:
    parser = argparse.ArgumentParser(prog="npu_sim", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="install torch_npu aside and compile the stand-in libraries")
    run = commands.add_parser(
        "run", help="run a command on the simulated NPU; builds first where needed"
    )
    run.add_argument(
        "--soc", default="910B3", help=f"product: {', '.join(PRODUCTS)}, or a full chip name"
    )
    run.add_argument("--devices", type=int, default=4, help="number of NPUs")
    run.add_argument("--memory-gb", type=float, help="memory of each NPU, 16 by default")
    run.add_argument(
        "--record",
        metavar="FILE",
        help="write what each forward pass of the engine does, as JSON lines",
    )
    run.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    arguments = parser.parse_args()

    libraries = build(log=lambda *a: print(*a, file=sys.stderr))
    if arguments.command == "build":
        return
    command = arguments.rest[1:] if arguments.rest[:1] == ["--"] else arguments.rest
    if not command:
        run.error("no command given after --")
    env = environment(
        libraries, arguments.soc, arguments.devices, arguments.memory_gb, arguments.record
    )
    os.execvpe(command[0], command, env)


if __name__ == "__main__":
    main()
