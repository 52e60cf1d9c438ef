"""Where the parts of the simulation lie."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
RUNTIME = PACKAGE / "runtime"
BOOT = PACKAGE / "boot"

# Built things live in the virtual environment, beside and never inside its site-packages, so that
# the plain environment does not see torch_npu.
BASE = Path(os.environ.get("NPU_SIM_HOME") or Path(sys.prefix) / "npu_sim")
SITE = BASE / "site"
LIBRARIES = BASE / "lib"  # one folder for each state of the sources; processes that run keep theirs
TORCH_NPU = SITE / "torch_npu"
TORCH = Path(sysconfig.get_paths()["purelib"]) / "torch"
