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
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
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

    def __str__(self) -> str:
        start = f"{self.state:<6}{self.part:<11}{self.seen}"
        return f"{start}\n{'':<17}{self.todo}" if self.todo else start


#: What a look finds: a line that is sound, or ``(state, seen, todo)``.
_Seen = str | tuple[str, str, str]


def run(asked: Namespace) -> tuple[list[dict[str, str]], None, bool]:
    """The command.  Without ``--json`` each line is printed at once, as some take seconds."""
    findings = []
    for finding in examine():
        findings.append(finding)
        if not asked.json:
            print(finding, flush=True)
    return [asdict(one) for one in findings], None, all(x.state != "wrong" for x in findings)


def examine() -> Iterator[Finding]:
    """Look at everything, the engine last, as it takes seconds to import."""
    on_npu = {"torch_npu": _torch_npu, "CANN": _cann, "driver": _driver, "NPUs": _npus}
    on_npu["HCCL"] = _hccl
    if find_spec("torch_npu") is None:
        on_npu = {"torch_npu": _no_npu}
    rest = {"memory": _memory, "caches": _caches, "engine": _engine, "plugin": _plugin}
    looks = {"package": _package, "torch": _torch, **on_npu, **rest}
    for part, look in (looks | {"kernels": _operators, "tuned": _tuned}).items():
        yield from _looked_at(part, look)


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


def _looked_at(part: str, look: Callable[[], Any]) -> list[Finding]:
    found: list[_Seen] = []
    try:
        with quiet():
            seen = look()
            found.extend([seen] if isinstance(seen, str | tuple) else seen)
    except Exception as error:
        found.append(("wrong", f"{type(error).__name__}: {error}", ""))
    states = (("ok", one, "") if isinstance(one, str) else one for one in found)
    return [
        Finding(part, state, _without_paths(seen) if state == "wrong" else seen, todo)
        for state, seen, todo in states
    ]


def _without_paths(said: str) -> str:
    """A message of another library, without folders, in one line."""
    return shown(_PATH.sub(".../", " ".join(said.split())), 400)


def _package() -> str:
    machine = f"{platform.system()} {platform.machine()}"
    return f"ascend-gguf {__version__}, Python {platform.python_version()}, {machine}"


def _torch() -> _Seen:
    try:
        import torch
    except ImportError as error:
        return "wrong", f"cannot be imported: {error}", "Install torch."
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads"


def _no_npu() -> _Seen:
    return "note", "not installed: models run on the CPU here", ""


def _torch_npu() -> _Seen:
    import torch

    try:
        found = import_module("torch_npu").__version__
    except Exception as error:
        return "wrong", f"cannot be imported: {error}", _INSTALL_CANN
    if found.split(".")[:2] != torch.__version__.split(".")[:2]:
        todo = "Install the torch_npu of this torch: both have the same version."
        return "wrong", f"torch_npu {found} beside torch {torch.__version__}", todo
    return f"torch_npu {found}"


def _version_by_torch_npu(part: str) -> str:
    return import_module("torch_npu.npu.utils").get_cann_version(part)


def _cann() -> _Seen:
    if version := _version_by_torch_npu("CANN"):
        return f"CANN {version}"
    return "wrong", "its version cannot be found", _INSTALL_CANN


def _driver() -> _Seen:
    try:
        version = (re.findall(r"^Version=(\S+)", _DRIVER.read_text(), re.M) or [""])[0]
    except OSError:
        version = _version_by_torch_npu("DRIVER")
    if version:
        return f"driver {version}"
    return "wrong", "no driver", "Install the driver and firmware; `npu-smi info` must answer."


def _npus() -> Iterator[_Seen]:
    import torch

    npu: Any = torch.npu  # type: ignore[attr-defined]  # comes with torch_npu
    count = npu.device_count()
    if not count:
        todo = (
            "See `npu-smi info`; in a container pass /dev/davinci* to it, and look at "
            "ASCEND_RT_VISIBLE_DEVICES."
        )
        yield "wrong", "none can be used", todo
    for i in range(count):
        free, total = npu.mem_get_info(i)
        seen = f"{i}: {npu.get_device_name(i)}, {text.size(free)} of {text.size(total)} free"
        in_use = "note", seen, "Something else uses it: see `npu-smi info`."
        yield in_use if free < 0.8 * total else seen


def _hccl() -> _Seen:
    import torch

    if not torch.distributed.is_backend_available("hccl"):
        return "wrong", "torch has no such backend", "Install torch_npu again."
    try:
        ctypes.CDLL("libhccl.so")
    except OSError as error:
        return "wrong", f"libhccl.so cannot be loaded: {error}", _INSTALL_CANN
    return "is there, for several NPUs"


def _memory() -> Iterator[_Seen]:
    pages = os.sysconf("SC_PAGE_SIZE")
    total, free = (pages * os.sysconf(f"SC_{name}_PAGES") for name in ("PHYS", "AVPHYS"))
    yield f"{text.size(total)} of the host, {text.size(free)} of it free"
    free = shutil.disk_usage("/dev/shm").free
    seen = f"{text.size(free)} of shared memory (/dev/shm) free"
    todo = "Ranks need about 1 GB: start the container with --shm-size 16g or more."
    yield ("note", seen, todo) if free < 1 << 30 else seen


def _caches() -> Iterator[_Seen]:
    hub = import_module("huggingface_hub.constants").HF_HUB_CACHE
    for name, folder, variable in (
        ("of the Hugging Face Hub", hub, "HF_HOME"),
        ("of temporary files", tempfile.gettempdir(), "TMPDIR"),
    ):
        there = next(p for p in (Path(folder), *Path(folder).parents) if p.exists())
        free, is_writable = shutil.disk_usage(there).free, os.access(there, os.W_OK)
        seen = f"{name}: {text.size(free)} free" + ", not writable" * (not is_writable)
        is_bad = not is_writable or free < 1 << 30
        yield ("note", seen, f"Set {variable} to a folder with space.") if is_bad else seen


def _engine() -> _Seen:
    try:
        return f"SGLang {metadata.version('sglang')}"
    except metadata.PackageNotFoundError:
        return "wrong", "SGLang is not installed", _INSTALL_SGLANG


def _plugin() -> _Seen:
    if find_spec("sglang") is None:
        return "wrong", "there is no engine to patch", _INSTALL_SGLANG
    if "ascend_gguf" not in metadata.entry_points(group="sglang.srt.plugins").names:
        return "wrong", "SGLang does not find it", "Install this package again: pip install ."
    only = os.environ.get("SGLANG_PLUGINS")
    if only is not None and "ascend_gguf" not in only.split(","):
        todo = "Unset SGLANG_PLUGINS, or add ascend_gguf."
        return "wrong", "SGLANG_PLUGINS leaves it out", todo
    return f"fits this engine: {_of_patch('doctor').hooks()} functions hooked"


def _of_patch(name: str) -> Any:
    """A part of the patch, which asks the engine."""
    return import_module(f"ascend_gguf.srt.{name}")


def _operators() -> Iterator[_Seen]:
    if find_spec("sglang") is None:
        return
    todo = (
        "Models are served all the same, with other layouts or operators. Another release of "
        "CANN may be right."
    )
    for name, problem in _of_patch("doctor").operators():
        wrong = "wrong", f"{name}: {problem}", todo
        yield wrong if problem else f"{name}: as documented"


def _tuned() -> Iterator[_Seen]:
    try:
        known = tuned.read()
    except GGUFError as error:
        yield "note", f"the cache is {error.problem}", error.hint or ""
        return
    if find_spec("sglang") is not None:
        here = known.get(_of_patch("tune").device_name())
        some = f"layouts of {len(here or ())} shapes were timed on this device"
        yield some if here else "no layout was timed on this device: see `ascend-gguf tune`"
