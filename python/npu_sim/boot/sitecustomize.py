"""On PYTHONPATH, this makes every Python process of the environment run on the simulated NPU.

torch loads torch_npu by itself, as on a machine with an Ascend; this only puts the simulation
under and over that import, and supplies what the engine imports beyond torch_npu.
"""

import importlib.machinery
import importlib.util
import os
import sys

from npu_sim.boot.around_import import AroundImport


def _before():
    from npu_sim.runtime import start

    start.preload()


def _after(torch_npu):
    from npu_sim.runtime import start

    # torch_npu brings a torchair that wants CANN's graph engine.
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchair"]:
        del sys.modules[name]
    import torchair  # noqa: F401

    start.take_over()
    from npu_sim.boot import engine

    engine.install()


AroundImport.of("torch_npu", _after, _before)

# A sitecustomize of the environment itself still runs.
_HERE = os.path.dirname(os.path.abspath(__file__))
for _path in sys.path:
    if os.path.abspath(_path or ".") == _HERE:
        continue
    _spec = importlib.machinery.PathFinder.find_spec("sitecustomize", [_path])
    if _spec and _spec.loader:
        _spec.loader.exec_module(importlib.util.module_from_spec(_spec))
        break
