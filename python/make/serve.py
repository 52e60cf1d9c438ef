"""Serve a GGUF file from a checkout: ``make serve MODEL=file.gguf DEVICE=cpu``.

Sets the environment and options for the device, then runs ``python -m sglang.launch_server``.
Shows what a user needs of its log, which goes to a file; with ``VERBOSE=1`` it becomes the server.
Arguments after ``--`` go to the engine unchanged and override the options set here.

========== ==================================================================================
cpu        in ``.venv``, which is set up if necessary
npu        with the interpreter that runs this script: an SGLang environment on an Ascend machine
npu --sim  in ``.venv``, on the simulated NPU of python/npu_sim
========== ==================================================================================
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import quiet
import setup_env

DEVICES = ("cpu", "npu")

#: What may be a model on the Hub.  ``ascend_gguf.hub`` checks exactly, but needs ``.venv``.
_REFERENCE = re.compile(
    r"(hf://|(https?://)?(www\.)?(hf\.co|huggingface\.co)/)?\w[\w.-]*/\w[\w.-]*(?<!\.gguf)([:/].+)?"
)


class UsageError(Exception):
    """The request cannot be served; the message is one line for the user."""


def number_of_ranks(engine_arguments: Sequence[str]) -> int:
    """Number of ranks that the engine starts for these arguments: tp x pp x dp."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--tensor-parallel-size", "--tp-size", "--tp", type=int, default=1)
    parser.add_argument("--pipeline-parallel-size", "--pp-size", "--pp", type=int, default=1)
    parser.add_argument("--data-parallel-size", "--dp-size", "--dp", type=int, default=1)
    try:
        sizes, _ = parser.parse_known_args(engine_arguments)
    except argparse.ArgumentError as error:
        raise UsageError(f"ARGS: {error}") from None
    return sizes.tensor_parallel_size * sizes.pipeline_parallel_size * sizes.data_parallel_size


def physical_cpus() -> list[int]:
    """The CPUs this process may use, one per core."""
    cores: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            core = siblings.read_text()
        except OSError:
            core = str(cpu)
        cores.setdefault(core, cpu)
    return list(cores.values())


def numa_nodes() -> int:
    nodes = Path("/sys/devices/system/node").glob("node[0-9]*/cpulist")
    return max(1, sum(bool(node.read_text().strip()) for node in nodes))


def thread_binding(ranks: int, cpus: Sequence[int]) -> str:
    """SGLANG_CPU_OMP_THREADS_BIND: an equal share of ``cpus`` for each rank, as ``0,1|2,3``.

    If there are more ranks than CPUs, each gets one CPU and ranks share them.
    """
    share = len(cpus) // ranks
    if share == 0:
        return "|".join(str(cpus[rank % len(cpus)]) for rank in range(ranks))
    shares = (cpus[rank * share : (rank + 1) * share] for rank in range(ranks))
    return "|".join(",".join(map(str, cpus)) for cpus in shares)


def _cpu_environment(engine_arguments: Sequence[str]) -> dict[str, str]:
    environment = {"SGLANG_USE_CPU_ENGINE": "1"}
    ranks = number_of_ranks(engine_arguments)
    if ranks > 1:
        cpus = physical_cpus()
        # By default the engine gives each rank a NUMA node, and fails if there are too few.
        if ranks > numa_nodes():
            environment["SGLANG_CPU_OMP_THREADS_BIND"] = thread_binding(ranks, cpus)
        # Without the AMX kernels the binding is not applied: limit the threads of each rank.
        environment["OMP_NUM_THREADS"] = str(max(1, len(cpus) // ranks))
    return environment


def has_sgl_kernel() -> bool:
    """Whether ``.venv`` has the real sgl_kernel, with its attention kernels for AMX."""
    return any(setup_env.ENVIRONMENT.glob("lib/python*/site-packages/sgl_kernel/__init__.py"))


def engine_command(
    python: str | Path, model: str | Path, device: str, port: int | str
) -> list[str]:
    """The engine's command line for ``model``, without the user's arguments."""
    command = [str(python), "-m", "sglang.launch_server", "--model-path", model]
    command += ["--quantization", "gguf", "--device", device, "--port", str(port)]
    if device == "cpu":
        # Otherwise the scheduler polls for requests without a pause, which takes a core when idle.
        command += ["--sleep-on-idle"]
        if not has_sgl_kernel():
            command += ["--attention-backend", "torch_native"]
    return command


def plan(
    model: str, device: str, port: int | str, sim: bool, engine_arguments: Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """The command that serves ``model``, and the environment variables to add.

    Variables that the user has set are kept.  Raises UsageError.
    """
    if not model:
        raise UsageError("which model? make serve MODEL=path/to/model.gguf")
    model = os.path.expanduser(model)
    if not os.path.exists(model) and not _REFERENCE.fullmatch(model):
        raise UsageError(f"MODEL={model} does not exist")
    if device not in DEVICES:
        raise UsageError(f"DEVICE={device} is not one of {', '.join(DEVICES)}")
    if sim and device != "npu":
        raise UsageError("SIM=1 simulates an NPU: add DEVICE=npu")
    if not (str(port).isdecimal() and 0 < int(port) < 65536):
        raise UsageError(f"PORT={port} is not a port number")
    in_environment = device == "cpu" or sim
    python = setup_env.PYTHON if in_environment else sys.executable
    command = [*engine_command(python, model, device, port), *engine_arguments]
    if device == "cpu":
        defaults = _cpu_environment(engine_arguments)
    else:
        # `make setup` selects the CPU engine; an NPU, simulated or not, must not use it.
        defaults = {"SGLANG_USE_CPU_ENGINE": "0"}
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    if sim:
        search = [str(setup_env.CHECKOUT / "python"), os.environ.get("PYTHONPATH", "")]
        added["PYTHONPATH"] = os.pathsep.join(filter(None, search))
        # Builds the simulated NPU if necessary.
        command = [str(python), "-m", "npu_sim", "run", "--", *command]
    return command, added


def _check_npu_environment() -> None:
    for package in ("sglang", "torch_npu", "ascend_gguf"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"DEVICE=npu: {sys.executable} has no {package}; activate the SGLang environment "
                "of the Ascend machine (and pip install this checkout there), or add SIM=1"
            )


def main() -> int:
    parser = argparse.ArgumentParser(prog="make serve", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", default="30000")
    parser.add_argument("--sim", action="store_true")
    parser.add_argument("engine_arguments", nargs="*")
    asked = parser.parse_args()
    try:
        command, added = plan(
            asked.model, asked.device, asked.port, asked.sim, asked.engine_arguments
        )
        environment = os.environ | added
        if asked.device == "npu" and not asked.sim:
            _check_npu_environment()
        else:
            setup_env.ensure()
    except (UsageError, setup_env.SetupError) as error:
        print(f"make serve: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    if os.environ.get("VERBOSE", "0") in ("", "0"):
        log = setup_env.CHECKOUT / "build" / f"serve-{asked.port}.log"
        where = "the CPU" if asked.device == "cpu" else "a simulated NPU" if asked.sim else "NPUs"
        url = f"http://127.0.0.1:{asked.port}"
        return quiet.serve(command, environment, log, url, f"{asked.model} on {where}")
    shown = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
    print(" ".join([*shown, shlex.join(command)]), flush=True)
    # Become the server, so that Ctrl-C and signals reach it directly.
    os.execve(command[0], command, environment)


if __name__ == "__main__":
    sys.exit(main())
