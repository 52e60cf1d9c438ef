"""The environment variables of a process on the simulated NPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from .paths import BOOT, PACKAGE, SITE

PRODUCTS = {
    "910B3": "Ascend910B3",
    "910_93": "Ascend910_9391",
    "310P3": "Ascend310P3",
    "950": "Ascend950PR_9599",
}


def environment(
    libraries: Path,
    soc: str = "910B3",
    devices: int = 4,
    memory_gb: float | None = None,
    record: str | None = None,
    base: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """``base`` (this process's environment) plus what makes a child run on the simulation.

    libraries: the folder that ``build.build()`` returned.  memory_gb: of each NPU, 16 by
    default; the host gives only what is really used.
    """
    env = dict(os.environ if base is None else base)
    paths = [str(BOOT), str(SITE), str(PACKAGE.parent)]
    paths += [p for p in env.get("PYTHONPATH", "").split(os.pathsep) if p and p not in paths]
    env["PYTHONPATH"] = os.pathsep.join(paths)
    env["NPU_SIM_LIB"] = str(libraries)
    env["NPU_SIM_SOC"] = PRODUCTS.get(soc, soc)
    env["NPU_SIM_DEVICES"] = str(devices)
    if memory_gb is not None:
        env["NPU_SIM_MEMORY_GB"] = str(memory_gb)
    if record:
        env["NPU_SIM_RECORD"] = os.path.abspath(record)
    # The engine takes itself for a CPU engine unless told otherwise.
    env["SGLANG_USE_CPU_ENGINE"] = "0"
    # Triton kernels are interpreted: there is no compiler for the device.
    env["TRITON_INTERPRET"] = "1"
    # Operators run in the thread that calls them, so that errors have the caller's stack.
    env["TASK_QUEUE_ENABLE"] = "0"
    # A CANN installation of the machine must not mix with the stand-ins.
    for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH", "ASCEND_TOOLKIT_HOME"):
        env.pop(name, None)
    return env
