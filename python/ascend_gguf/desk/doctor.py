"""``ascend-gguf doctor``: is this installation sound?  A line for each part of it.

The lines are meant for a bug report: no path, host or user is named.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import platform
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ascend_gguf import __version__
from ascend_gguf.desk import text
from ascend_gguf.errors import GGUFError, shown
from ascend_gguf.weights import tuned

_PATH = re.compile(r"(?<![\w/])~?(?:/[\w.@+~-]+)+/")
_DRIVER = Path("/usr/local/Ascend/driver/version.info")
_INSTALL_SGLANG = "Install SGLang into this environment (docs/ascend_npu.md)."
_INSTALL_CANN = (
    "Install the CANN toolkit that this torch_npu needs (see its table of versions), and source "
    "its set_env.sh."
)


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, ``ok``, ``note`` or ``wrong``, what was seen, what to do."""

    part: str
    state: str
    seen: str
    todo: str = ""


class _Wrong(Exception):
    """What is wrong, and what to do."""


def examine() -> Iterator[Finding]:
    """Look at everything, the engine last, as it takes seconds to import."""
    yield from _looked_at("package", _package)
    yield from _looked_at("torch", _torch)
    if find_spec("torch_npu") is not None:
        yield from _looked_at("torch_npu", _torch_npu)
        yield from _looked_at("CANN", _cann)
        yield from _looked_at("driver", _driver)
        yield from _looked_at("NPUs", _npus)
        yield from _looked_at("HCCL", _hccl)
    else:
        yield Finding("torch_npu", "note", "not installed: models run on the CPU here")
    yield from _looked_at("memory", _memory)
    yield from _looked_at("caches", _caches)
    yield from _looked_at("engine", _engine)
    yield from _looked_at("plugin", _plugin)
    yield from _looked_at("kernels", _operators)
    yield from _looked_at("tuned", _tuned)


@contextmanager
def quiet() -> Iterator[None]:
    """What is imported here prints, warns and logs much."""
    show, warnings.showwarning = warnings.showwarning, lambda *_, **__: None
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        warnings.showwarning = show
        logging.disable(logging.NOTSET)


def _looked_at(part: str, look: Callable[[], Iterator[Finding | str] | str]) -> list[Finding]:
    """What ``look`` finds; a line alone is sound."""
    found: list[Finding] = []
    try:
        with quiet():
            seen = look()
            for one in [seen] if isinstance(seen, str) else seen:
                found.append(Finding(part, "ok", one) if isinstance(one, str) else one)
    except _Wrong as error:
        found.append(Finding(part, "wrong", *map(_without_paths, error.args)))
    except Exception as error:
        found.append(Finding(part, "wrong", _without_paths(f"{type(error).__name__}: {error}")))
    return found


def _without_paths(said: str) -> str:
    """A message of another library, without folders, in one line."""
    return shown(_PATH.sub(".../", " ".join(said.split())), 400)


def _package() -> str:
    machine = f"{platform.system()} {platform.machine()}"
    return f"ascend-gguf {__version__}, Python {platform.python_version()}, {machine}"


def _torch() -> str:
    try:
        import torch
    except ImportError as error:
        raise _Wrong(f"cannot be imported: {error}", "Install torch.") from None
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def _torch_npu() -> str:
    import torch

    try:
        found = import_module("torch_npu").__version__
    except Exception as error:
        raise _Wrong(f"cannot be imported: {error}", _INSTALL_CANN) from None
    if found.split(".")[:2] != torch.__version__.split(".")[:2]:
        raise _Wrong(
            f"torch_npu {found} beside torch {torch.__version__}",
            "Install the torch_npu of this torch: both have the same version.",
        )
    return f"torch_npu {found}"


def _cann() -> str:
    version = import_module("torch_npu.npu.utils").get_cann_version("CANN")
    if not version:
        raise _Wrong("its version cannot be found", _INSTALL_CANN)
    return f"CANN {version}"


def _driver() -> str:
    try:
        said = _DRIVER.read_text()
    except OSError:
        version = import_module("torch_npu.npu.utils").get_cann_version("DRIVER")
    else:
        version = (re.findall(r"^Version=(\S+)", said, re.M) or [""])[0]
    if not version:
        raise _Wrong("no driver", "Install the driver and firmware; `npu-smi info` must answer.")
    return f"driver {version}"


def _npus() -> Iterator[Finding | str]:
    import torch

    npu: Any = torch.npu  # type: ignore[attr-defined]  # comes with torch_npu
    count = npu.device_count()
    if not count:
        raise _Wrong(
            "none can be used",
            "See `npu-smi info`; in a container pass /dev/davinci* to it, and look at "
            "ASCEND_RT_VISIBLE_DEVICES.",
        )
    for i in range(count):
        free, total = npu.mem_get_info(i)
        seen = f"{i}: {npu.get_device_name(i)}, {text.size(free)} of {text.size(total)} free"
        if free < 0.8 * total:
            yield Finding("NPUs", "note", seen, "Something else uses it: see `npu-smi info`.")
        else:
            yield seen


def _hccl() -> str:
    import torch

    if not torch.distributed.is_backend_available("hccl"):
        raise _Wrong("torch has no such backend", "Install torch_npu again.")
    try:
        ctypes.CDLL("libhccl.so")
    except OSError as error:
        raise _Wrong(f"libhccl.so cannot be loaded: {error}", _INSTALL_CANN) from None
    return "is there, for several NPUs"


def _memory() -> Iterator[Finding | str]:
    pages = os.sysconf("SC_PAGE_SIZE")
    total, free = (pages * os.sysconf(f"SC_{name}_PAGES") for name in ("PHYS", "AVPHYS"))
    yield f"{text.size(total)} of the host, {text.size(free)} of it free"
    shared = shutil.disk_usage("/dev/shm")
    seen = f"{text.size(shared.free)} of shared memory (/dev/shm) free"
    if shared.free < 1 << 30:
        todo = "Ranks need about 1 GB: start the container with --shm-size 16g or more."
        yield Finding("memory", "note", seen, todo)
    else:
        yield seen


def _caches() -> Iterator[Finding | str]:
    hub = import_module("huggingface_hub.constants").HF_HUB_CACHE
    for name, folder, todo in (
        ("of the Hugging Face Hub", hub, "Set HF_HOME to a folder with space."),
        ("of temporary files", tempfile.gettempdir(), "Set TMPDIR to a folder with space."),
    ):
        there = next(p for p in (Path(folder), *Path(folder).parents) if p.exists())
        free = shutil.disk_usage(there).free
        if not os.access(there, os.W_OK) or free < 1 << 30:
            reason = "cannot be written to" if free >= 1 << 30 else f"{text.size(free)} free"
            yield Finding("caches", "note", f"{name}: {reason}", todo)
        else:
            yield f"{name}: {text.size(free)} free"


def _engine() -> str:
    try:
        version = metadata.version("sglang")
    except metadata.PackageNotFoundError:
        raise _Wrong("SGLang is not installed", _INSTALL_SGLANG) from None
    return f"SGLang {version}"


def _plugin() -> str:
    if find_spec("sglang") is None:
        raise _Wrong("there is no engine to patch", _INSTALL_SGLANG)
    points = metadata.entry_points(group="sglang.srt.plugins")
    if "ascend_gguf" not in points.names:
        raise _Wrong("SGLang does not find it", "Install this package again: pip install .")
    only = os.environ.get("SGLANG_PLUGINS")
    if only is not None and "ascend_gguf" not in only.split(","):
        raise _Wrong("SGLANG_PLUGINS leaves it out", "Unset SGLANG_PLUGINS, or add ascend_gguf.")
    hooks = _of_patch().hooks()
    return f"fits this engine: {hooks} functions hooked"


def _of_patch() -> Any:
    """The part of the doctor that asks the engine."""
    return import_module("ascend_gguf.srt.doctor")


def _operators() -> Iterator[Finding | str]:
    if find_spec("sglang") is None:
        return
    for name, problem in _of_patch().operators():
        if problem is None:
            yield f"{name}: as documented"
            continue
        todo = (
            "Models are served all the same, with other layouts or operators. Another release of "
            "CANN may be right."
        )
        yield Finding("kernels", "wrong", _without_paths(f"{name}: {problem}"), todo)


def _tuned() -> Iterator[Finding | str]:
    try:
        known = tuned.read()
    except GGUFError as error:
        yield Finding("tuned", "note", f"the cache is {error.problem}", error.hint or "")
        return
    if find_spec("sglang") is not None:
        here = known.get(import_module("ascend_gguf.srt.tune").device_name())
        yield (
            f"layouts of {len(here)} shapes were timed on this device"
            if here
            else "no layout was timed on this device: see `ascend-gguf tune`"
        )


def line(finding: Finding) -> str:
    """A finding for a terminal."""
    start = f"{finding.state:<6}{finding.part:<11}{finding.seen}"
    return f"{start}\n{'':<17}{finding.todo}" if finding.todo else start
